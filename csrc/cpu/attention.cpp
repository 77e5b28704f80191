#include "attention.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "denormals.h"
#include "item.h"

namespace int4kv {
namespace {

// Tiles of an item's tokens, times items, from which threads are started; chosen, not tuned.
constexpr int64_t kParallelTiles = 8;
constexpr int64_t kMergedRows = 64;  // rows that a thread joins at least

// So many splits that the threads have equal shares, and each at least one tile.
int64_t count_splits(int64_t items, int64_t tiles) {
  const int64_t threads = items * tiles < kParallelTiles ? 1 : at::get_num_threads();
  return std::clamp<int64_t>(threads / std::gcd(std::max<int64_t>(items, 1), threads), 1, std::max<int64_t>(tiles, 1));
}

// Kept from call to call: a decode step allocates nothing but its output.
float* scratch(size_t count) {
  static thread_local std::vector<float> kept;
  if (kept.size() < count) kept.resize(count);
  return kept.data();
}

} // namespace

Span Attention::span(int64_t query) const {
  const int64_t p = end - queries + query;
  const int64_t hi = causal ? std::clamp(p + 1, start, end) : end;
  const int64_t lo = window > 0 ? std::clamp(p - window + 1, start, hi) : start;
  const int64_t sunk = std::clamp(k_sink ? k_sink->codes.capacity : 0, lo, hi);
  const int64_t exact = k_recent ? std::max(recent_start, p - recent_window + 1) : end;
  return {lo, sunk, std::clamp(exact, sunk, hi), hi};
}

void Attention::merge(int64_t row) const {
  float highest = kFloor, total = 0.0f;
  for (int64_t s = 0; s < splits; ++s) highest = std::max(highest, partial_of(s, row)[head_dim]);
  alignas(64) float joined[INT4KV_MAX_HEAD_DIM] = {};
  for (int64_t s = 0; s < splits; ++s) {
    const float* part = partial_of(s, row);
    if (part[head_dim + 1] == 0.0f) continue;
    const float weight = std::exp2(part[head_dim] - highest);
    total += weight * part[head_dim + 1];
    for (int64_t c = 0; c < head_dim; ++c) joined[c] += weight * part[c];
  }
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  for (int64_t c = 0; c < head_dim; ++c) joined[c] *= inverse;
  const int64_t head = row / queries % heads, b = row / queries / heads;
  v_rotation.invert(joined, head / group(), head_dim);
  store_row(out, b, head, row % queries, head_dim, joined, total == 0.0f ? nullptr : v_centre.of(b, head / group()));
}

void Attention::run() {
  splits = count_splits(items(), tiles());
  partial = scratch(splits * rows() * (head_dim + 2));
  const int64_t count = items() * splits, grain = items() * tiles() < kParallelTiles ? count : 1;
  at::parallel_for(0, count, std::max<int64_t>(grain, 1), [&](int64_t begin, int64_t stop) {
    const FlushDenormals flush;
    for (int64_t i = begin; i < stop; ++i) Item(*this, i).run();
  });
  at::parallel_for(0, rows(), kMergedRows, [&](int64_t begin, int64_t stop) {
    for (int64_t row = begin; row < stop; ++row) merge(row);
  });
}

} // namespace int4kv
