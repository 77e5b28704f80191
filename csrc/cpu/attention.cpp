#include "attention.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "denormals.h"
#include "item.h"

namespace int4kv {
namespace {

// Tiles of an item's tokens, times items, from which threads are started. Cold, on two cores of an EPYC, 4 tiles take as long on one thread
// as on two (81 to 85 us at 12q2kv128, 70 to 74 at 14q2kv64), 2 tiles on one an eighth less.
constexpr int64_t kParallelTiles = 8;
constexpr int64_t kMergedRows = 64;  // rows that a thread joins at least

// Kept from call to call: a decode step allocates nothing but its output.
float* scratch(size_t count) {
  static thread_local std::vector<float> kept;
  if (kept.size() < count) kept.resize(count);
  return kept.data();
}

// The last sequence that begins at `number` or before; `first` is where one begins. Those of no items or rows begin where the next does.
template <typename Sequences>
const Sequence& sequence_at(const Sequences& sequences, int64_t number, int64_t Sequence::*first) {
  return *std::prev(std::upper_bound(
      sequences.begin(), sequences.end(), number, [first](int64_t n, const Sequence& s) { return n < s.*first; }));
}

} // namespace

int64_t splits_for(int64_t items, int64_t tiles) {
  const int64_t threads = items * tiles < kParallelTiles ? 1 : at::get_num_threads();
  return std::clamp<int64_t>(threads / std::gcd(std::max<int64_t>(items, 1), threads), 1, std::max<int64_t>(tiles, 1));
}

Span Attention::span(const Sequence& s, int64_t query) const {
  const int64_t p = s.end - s.queries + query;
  const int64_t hi = causal ? std::clamp(p + 1, s.start, s.end) : s.end;
  const int64_t lo = window > 0 ? std::clamp(p - window + 1, s.start, hi) : s.start;
  const int64_t sunk = std::clamp(k_sink ? k_sink->codes.capacity : 0, lo, hi);
  const int64_t exact = k_recent && s.ring >= 0 ? std::max(s.recent_start, p - recent_window + 1) : s.end;
  return {lo, sunk, std::clamp(exact, sunk, hi), hi};
}

const Sequence& Attention::sequence_of_item(int64_t item) const {
  return sequence_at(sequences, item, &Sequence::first_item);
}

void Attention::merge(const Sequence& s, int64_t row) const {
  float highest = kFloor, total = 0.0f;
  for (int64_t i = 0; i < s.splits; ++i) highest = std::max(highest, partial_of(s, i, row)[head_dim]);
  alignas(64) float joined[INT4KV_MAX_HEAD_DIM] = {};
  for (int64_t i = 0; i < s.splits; ++i) {
    const float* part = partial_of(s, i, row);
    if (part[head_dim + 1] == 0.0f) continue;
    const float weight = std::exp2(part[head_dim] - highest);
    total += weight * part[head_dim + 1];
    for (int64_t c = 0; c < head_dim; ++c) joined[c] += weight * part[c];
  }
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  for (int64_t c = 0; c < head_dim; ++c) joined[c] *= inverse;
  const int64_t head = row / s.queries, query = s.first_query + row % s.queries;
  v_rotation.invert(joined, head / group(), head_dim);
  store_row(out, s.batch, head, query, head_dim, joined, total == 0.0f ? nullptr : v_centre.of(s.batch, head / group()));
}

void Attention::merge_rows(int64_t begin, int64_t end) const {
  for (int64_t row = begin; row < end; ++row) {
    const Sequence& s = sequence_at(sequences, row, &Sequence::first_row);
    merge(s, row - s.first_row);
  }
}

void Attention::run() {
  int64_t items = 0, split_rows = 0, partials = 0, tiles = 0;
  for (Sequence& s : sequences) {
    const int64_t blocks_of_heads = kv_heads * blocks(s.queries);
    s.first_item = items;
    s.first_row = split_rows;
    items += blocks_of_heads * s.splits;
    split_rows += s.splits > 1 ? rows(s) : 0;
    partials += rows(s) * s.splits;
    tiles += blocks_of_heads * s.tiles();
  }
  float* partial = scratch(partials * (head_dim + 2));
  for (Sequence& s : sequences) {
    s.partial = partial;
    partial += rows(s) * s.splits * (head_dim + 2);
  }
  const int64_t threads = tiles < kParallelTiles ? 1 : std::clamp<int64_t>(items, 1, at::get_num_threads());
  std::atomic<int64_t> next{threads};  // each thread begins with its own number: where items are as many, it keeps its head's codes
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t stop) {
    const FlushDenormals flush;
    for (int64_t i = begin; i < stop && i < items; ++i) Item(*this, i).run();
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) Item(*this, i).run();
  });
  at::parallel_for(0, split_rows, kMergedRows, [this](int64_t begin, int64_t end) { merge_rows(begin, end); });
}

} // namespace int4kv
