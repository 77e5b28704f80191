// attend: o = R_v^T softmax2(q' K'^T) V', straight from the packed rows; q' = log2(e) * scale * R_k q.
//
// Every query row reads its sources over one token axis: codes for the old tokens, exact rows for the first and for its newest ones.
//
//   start  lo      sunk                exact                p     end
//     |----|=sinks=|=======codes=========|======recent======|------|      lo: window;  p: the query's own position
//
// Work item = (batch, kv head, block of query positions, split of the token axis). An item decodes tiles of keys and
// values once for all its rows (positions x heads of the group) and keeps a running maximum, as flash attention does.
// Splits fill the threads when there are few items (decode); merge() joins them, rotates back and writes the output.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "rotation.h"
#include "rows.h"

namespace int4kv {
namespace {

constexpr int64_t kTile = 32;       // keys decoded at a time: K and V tiles of head_dim 128 are 32 KiB; chosen, not tuned
constexpr int64_t kRows = 32;       // query rows that share one decoded tile
constexpr int64_t kMinSplit = 256;  // keys that a split has at least; chosen, not tuned
constexpr float kLog2e = 1.44269504f;
constexpr float kNone = -std::numeric_limits<float>::infinity();

// 2^x for x <= 0, relative error under 3e-7; NaN stays NaN.
inline float exp2_negative(float x) {
  x = x < -126.0f ? -126.0f : x;
  const float whole = (x + 12582912.0f) - 12582912.0f, part = x - whole;
  float y = 1.5403530e-4f;
  y = y * part + 1.3333558e-3f;
  y = y * part + 9.6181291e-3f;
  y = y * part + 5.5504109e-2f;
  y = y * part + 2.4022651e-1f;
  y = y * part + 6.9314718e-1f;
  y = y * part + 1.0f;
  const int32_t bits = (static_cast<int32_t>(whole) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return y * power;
}

inline Lanes load_lanes(const float* x) {
  return *reinterpret_cast<const Lanes*>(x);
}

inline float sum_lanes(Lanes x) {
  return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}

// Dot products of q with four keys at a time: one load of q serves four.
INT4KV_CLONES void score(const float* q, const float* keys, const int32_t* seen, int64_t count, int64_t head_dim, float* out) {
  for (int64_t j = 0; j < count; j += 4) {
    const float* key[4];
    for (int i = 0; i < 4; ++i) key[i] = keys + seen[std::min(j + i, count - 1)] * head_dim;
    Lanes sum[4] = {};
    for (int64_t c = 0; c < head_dim; c += kLanes) {
      const Lanes x = load_lanes(q + c);
      for (int i = 0; i < 4; ++i) sum[i] += x * load_lanes(key[i] + c);
    }
    for (int64_t i = 0; i < std::min<int64_t>(4, count - j); ++i) out[j + i] = sum_lanes(sum[i]);
  }
}

// The largest of count scores, and kNone if there is no larger one: a NaN is passed over here and comes back in the sum.
INT4KV_CLONES float largest(float* scores, int64_t count) {
  float lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = kNone;
  for (int64_t j = count; j % kLanes; ++j) scores[j] = kNone;
  for (int64_t j = 0; j < count; j += kLanes) {
    for (int i = 0; i < kLanes; ++i) lane[i] = scores[j + i] > lane[i] ? scores[j + i] : lane[i];
  }
  return *std::max_element(lane, lane + kLanes);
}

// scores -> 2^(score - maximum), in whole lanes: the padding behind count adds 2^-126 at most. Returns their sum.
INT4KV_CLONES float exponentials(float* scores, int64_t count, float maximum) {
  float lane[kLanes] = {};
  for (int64_t j = 0; j < count; j += kLanes) {
    for (int i = 0; i < kLanes; ++i) scores[j + i] = exp2_negative(scores[j + i] - maximum);
    for (int i = 0; i < kLanes; ++i) lane[i] += scores[j + i];
  }
  float sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) sum += lane[i];
  return sum;
}

// o = o * rescale + sum of p * value, 32 channels at a time so that the sums stay in registers.
INT4KV_CLONES void accumulate(
    const float* p, const float* values, const int32_t* seen, int64_t count, int64_t head_dim, float rescale, float* o) {
  for (int64_t d = 0; d < head_dim; d += 4 * kLanes) {
    Lanes sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = load_lanes(o + d + i * kLanes) * rescale;
    for (int64_t j = 0; j < count; ++j) {
      const float* value = values + seen[j] * head_dim + d;
      for (int i = 0; i < 4; ++i) sum[i] += p[j] * load_lanes(value + i * kLanes);
    }
    std::memcpy(o + d, sum, sizeof sum);
  }
}

// The tokens one query row may read: exact rows in [lo, sunk) and [exact, hi), codes in between.
struct Span {
  int64_t lo, sunk, exact, hi;
};

struct Attention {
  Rows q, out;
  Source k, v;
  std::optional<Source> k_recent, v_recent, k_sink, v_sink;
  std::optional<Rows> mask;
  Rotation k_rotation, v_rotation;
  at::Tensor v_centre, partial, maxima, sums;
  int64_t batch, heads, kv_heads, queries, head_dim, start, end, recent_start, recent_window, window, splits;
  float scale, softcap;
  bool causal;

  int64_t group() const { return heads / kv_heads; }
  int64_t block() const { return std::max<int64_t>(1, kRows / group()); }
  int64_t blocks() const { return (queries + block() - 1) / block(); }
  int64_t rows() const { return batch * heads * queries; }

  Span span(int64_t query) const {
    const int64_t p = end - queries + query;
    const int64_t hi = causal ? std::clamp(p + 1, start, end) : end;
    const int64_t lo = window > 0 ? std::clamp(p - window + 1, start, hi) : start;
    const int64_t sunk = std::clamp(k_sink ? k_sink->codes.capacity : 0, lo, hi);
    const int64_t exact = k_recent ? std::max(recent_start, p - recent_window + 1) : end;
    return {lo, sunk, std::clamp(exact, sunk, hi), hi};
  }
  void run(int64_t item) const;
  void merge(int64_t row) const;
};

// The rows of one work item: their rotated queries and what they have summed up so far.
struct Block {
  const Attention& a;
  int64_t b, kv_head, first_query, count, rows, from, to;
  std::vector<float> q, o, keys, values;
  std::vector<float> maximum, sum;
  std::vector<Span> spans;

  Block(const Attention& a_, int64_t item) : a(a_) {
    const int64_t split = item % a.splits, block = item / a.splits % a.blocks();
    kv_head = item / a.splits / a.blocks() % a.kv_heads;
    b = item / a.splits / a.blocks() / a.kv_heads;
    first_query = block * a.block();
    count = std::min(a.block(), a.queries - first_query);
    rows = count * a.group();
    from = a.start + (a.end - a.start) * split / a.splits;
    to = a.start + (a.end - a.start) * (split + 1) / a.splits;
    q.resize(rows * a.head_dim);
    o.assign(rows * a.head_dim, 0.0f);
    keys.resize(kTile * a.head_dim);
    values.resize(kTile * a.head_dim);
    maximum.assign(rows, kNone);
    sum.assign(rows, 0.0f);
    for (int64_t r = 0; r < rows; ++r) load_query(r);
  }

  int64_t head(int64_t r) const { return kv_head * a.group() + r % a.group(); }
  int64_t query(int64_t r) const { return first_query + r / a.group(); }

  void load_query(int64_t r) {
    float* row = q.data() + r * a.head_dim;
    load_row(a.q, b, head(r), query(r), a.head_dim, row);
    a.k_rotation.apply(row, kv_head, a.head_dim);
    const float factor = a.softcap > 0 ? a.scale : a.scale * kLog2e;
    for (int64_t c = 0; c < a.head_dim; ++c) row[c] *= factor;
    Span s = a.span(query(r));
    spans.push_back({std::clamp(s.lo, from, to), std::clamp(s.sunk, from, to), std::clamp(s.exact, from, to), std::clamp(s.hi, from, to)});
  }

  // One source over the tokens [first, last)(span) of every row.
  template <typename Range>
  void read(const Source& k, const Source& v, Range range) {
    int64_t first = to, last = from;
    for (const Span& s : spans) {
      const auto [lo, hi] = range(s);
      if (lo < hi) first = std::min(first, lo), last = std::max(last, hi);
    }
    for (int64_t t = first; t < last; t += kTile) {
      const int64_t stop = std::min(t + kTile, last);
      k.decode(b, kv_head, t, stop - t, a.head_dim, keys.data());
      v.decode(b, kv_head, t, stop - t, a.head_dim, values.data());
      for (int64_t r = 0; r < rows; ++r) {
        const auto [lo, hi] = range(spans[r]);
        add_tile(r, t, std::max(lo, t), std::min(hi, stop));
      }
    }
  }

  // Which of the tile's rows (its first token is t) query row r sees among the tokens lo .. hi.
  int64_t list_seen(int64_t r, int64_t t, int64_t lo, int64_t hi, int32_t* seen) const {
    int64_t n = 0;
    if (!a.mask) {
      for (; n < hi - lo; ++n) seen[n] = static_cast<int32_t>(lo - t + n);
      return n;
    }
    for (int64_t token = lo; token < hi; ++token) {
      seen[n] = static_cast<int32_t>(token - t);
      n += a.mask->at<bool>(b, head(r), query(r), token - a.start);
    }
    return n;
  }

  // Row r attends to the tokens lo .. hi that it sees; the tile's first token is t. Masked rows are never touched.
  void add_tile(int64_t r, int64_t t, int64_t lo, int64_t hi) {
    int32_t seen[kTile + 1];  // a token that is not seen is written and then overwritten
    float p[kTile];
    const int64_t n = list_seen(r, t, lo, hi, seen);
    if (n == 0) return;
    score(q.data() + r * a.head_dim, keys.data(), seen, n, a.head_dim, p);
    if (a.softcap > 0) {
      for (int64_t j = 0; j < n; ++j) p[j] = std::tanh(p[j] / a.softcap) * a.softcap * kLog2e;
    }
    const float highest = largest(p, n), before = maximum[r];
    maximum[r] = highest > before ? highest : before;
    const float rescale = before == maximum[r] ? 1.0f : exp2_negative(before - maximum[r]);
    sum[r] = sum[r] * rescale + exponentials(p, n, maximum[r]);
    accumulate(p, values.data(), seen, n, a.head_dim, rescale, o.data() + r * a.head_dim);
  }
};

void Attention::run(int64_t item) const {
  Block block(*this, item);
  if (k_sink) block.read(*k_sink, *v_sink, [](const Span& s) { return std::pair(s.lo, s.sunk); });
  block.read(k, v, [](const Span& s) { return std::pair(s.sunk, s.exact); });
  if (k_recent) block.read(*k_recent, *v_recent, [](const Span& s) { return std::pair(s.exact, s.hi); });
  const int64_t split = item % splits;
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t row = (block.b * heads + block.head(r)) * queries + block.query(r), slot = split * rows() + row;
    maxima.data_ptr<float>()[slot] = block.maximum[r];
    sums.data_ptr<float>()[slot] = block.sum[r];
    std::memcpy(partial.data_ptr<float>() + slot * head_dim, block.o.data() + r * head_dim, head_dim * sizeof(float));
  }
}

void Attention::merge(int64_t row) const {
  const float *m = maxima.const_data_ptr<float>() + row, *l = sums.const_data_ptr<float>() + row;
  const float* o = partial.const_data_ptr<float>() + row * head_dim;
  float highest = kNone, total = 0.0f;
  for (int64_t s = 0; s < splits; ++s) highest = std::max(highest, m[s * rows()]);
  float joined[INT4KV_MAX_HEAD_DIM] = {};
  for (int64_t s = 0; s < splits; ++s) {
    if (l[s * rows()] == 0.0f) continue;
    const float weight = exp2_negative(m[s * rows()] - highest);
    total += weight * l[s * rows()];
    for (int64_t c = 0; c < head_dim; ++c) joined[c] += weight * o[s * rows() * head_dim + c];
  }
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
  for (int64_t c = 0; c < head_dim; ++c) joined[c] *= inverse;
  const int64_t head = row / queries % heads;
  v_rotation.invert(joined, head / group(), head_dim);
  if (v_centre.defined() && total != 0.0f) {
    const float* c = v_centre.const_data_ptr<float>() + (row / queries / heads * kv_heads + head / group()) * head_dim;
    for (int64_t i = 0; i < head_dim; ++i) joined[i] += c[i];
  }
  store_row(out, row / queries / heads, head, row % queries, head_dim, joined);
}

int64_t count_splits(int64_t items, int64_t keys) {
  const int64_t wanted = (at::get_num_threads() + items - 1) / std::max<int64_t>(items, 1);
  return std::clamp<int64_t>(keys / kMinSplit, 1, std::max<int64_t>(wanted, 1));
}

std::optional<Source> plain_source(const OptionalTensor& rows, bool used = true) {
  return rows && used ? std::optional<Source>(Source(*rows)) : std::nullopt;
}

std::optional<Rows> expanded_mask(const OptionalTensor& mask, const at::Tensor& q, int64_t keys) {
  if (!mask) return std::nullopt;
  return Rows(mask->expand({q.size(0), q.size(1), q.size(2), keys}));
}

at::Tensor attend(
    const at::Tensor& q, const at::Tensor& k_codes, const at::Tensor& k_scales, const at::Tensor& v_codes,
    const at::Tensor& v_scales, int64_t start, int64_t end, double scale, const OptionalTensor& k_rotation,
    const OptionalTensor& v_rotation, const OptionalTensor& v_centre, const OptionalTensor& k_recent, const OptionalTensor& v_recent,
    int64_t recent_start, int64_t recent_window, const OptionalTensor& k_sink, const OptionalTensor& v_sink, const OptionalTensor& mask,
    bool causal, int64_t window, double softcap, std::string_view codebook) {
  check_attend(
      q, {k_codes, k_scales, k_recent, k_sink}, {v_codes, v_scales, v_recent, v_sink}, start, end, k_rotation, v_rotation, v_centre,
      recent_start, recent_window, mask, window, softcap, codebook);
  const int book = codebook_of(codebook);
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2), head_dim = q.size(3);
  const at::Tensor out = at::empty({batch, queries, heads, head_dim}, q.options()).transpose(1, 2);
  Attention a{
      Rows(q), Rows(out), Source(k_codes, k_scales, head_dim, book), Source(v_codes, v_scales, head_dim, book),
      plain_source(k_recent, recent_window > 0), plain_source(v_recent, recent_window > 0), plain_source(k_sink), plain_source(v_sink),
      expanded_mask(mask, q, end - start), Rotation(k_rotation, head_dim), Rotation(v_rotation, head_dim),
      v_centre ? v_centre->expand({batch, -1, -1}).contiguous() : at::Tensor(), {}, {}, {}, batch, heads, k_codes.size(1), queries, head_dim,
      start, end, recent_start, recent_window, window, 1,
      static_cast<float>(scale), static_cast<float>(softcap), causal};
  const int64_t items = batch * a.kv_heads * a.blocks();
  a.splits = count_splits(items, end - start);
  const auto scratch = q.options().dtype(at::kFloat);
  a.partial = at::empty({a.splits, a.rows(), head_dim}, scratch);
  a.maxima = at::empty({a.splits, a.rows()}, scratch);
  a.sums = at::empty({a.splits, a.rows()}, scratch);
  at::parallel_for(0, items * a.splits, 1, [&](int64_t begin, int64_t stop) {
    for (int64_t i = begin; i < stop; ++i) a.run(i);
  });
  at::parallel_for(0, a.rows(), kRows, [&](int64_t begin, int64_t stop) {
    for (int64_t row = begin; row < stop; ++row) a.merge(row);
  });
  return out;
}

} // namespace

TORCH_LIBRARY_IMPL(int4kv, CPU, m) {
  m.impl("attend", attend);
}

} // namespace int4kv
