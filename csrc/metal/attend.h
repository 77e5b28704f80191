// What both attention kernels share: which rows a threadgroup serves, which tokens they see, and how a finished row goes out.
//
// The query rows of one KV head are numbered query * group + head of the group: a block of neighbours shares every key that is
// read, whether they are the heads of a group (decode) or queries of a chunk as well.
//
//   0     lo       coded                  exact               position   keys
//   |------|=sinks===|=======codes==========|======recent=======|----------|       tokens of one query, from the op's start
//
// Widths and codebook are function constants: each pipeline is compiled, and takes registers, for its own case. So is `decode`, which
// leaves out what a plain decode step has no use for.
#ifndef INT4KV_METAL_ATTEND_H
#define INT4KV_METAL_ATTEND_H

#include "rotation.h"
#include "source.h"

INT4KV_FUNCTION_CONSTANT(k_bits, INT4KV_K_BITS_CONSTANT);
INT4KV_FUNCTION_CONSTANT(v_bits, INT4KV_V_BITS_CONSTANT);
INT4KV_FUNCTION_CONSTANT(codebook, INT4KV_CODEBOOK_CONSTANT);
INT4KV_FUNCTION_CONSTANT(decode, INT4KV_DECODE_CONSTANT);

constant constexpr float kFloor = -1e30f;  // the maximum of no scores; a score never is as low
constant constexpr float kLog2e = 1.44269504f;

// Tokens [lo, coded) are read from the plain rows of the first tokens, [coded, exact) from codes, [exact, hi) from recent rows.
struct Span {
  int lo, coded, exact, hi;
};

inline Span span_of(constant Int4kvAttend& p, thread const Sequence& sequence, uint query) {
  int keys = sequence.keys, position = decode ? keys - 1 : keys - int(sequence.queries) + int(query - sequence.first);
  Span span;
  span.hi = p.causal && !decode ? clamp(position + 1, 0, keys) : keys;
  span.lo = p.window > 0 ? clamp(position - p.window + 1, 0, span.hi) : 0;
  span.coded = decode ? span.lo : clamp(p.sinks, span.lo, span.hi);
  span.exact = clamp(max(sequence.recent_from, position - p.recent_window + 1), span.coded, span.hi);
  return span;
}

// One query row of a block, `query` in q; a row beyond the last one repeats it and is not live.
struct QueryRow {
  uint head, query;
  bool live;
};

inline QueryRow query_row(constant Int4kvAttend& p, thread const Sequence& sequence, uint kv_head, uint index) {
  uint group = p.group, rows = decode ? group : group * sequence.queries, held = min(index, rows - 1);
  QueryRow row;
  uint within = decode || sequence.queries == 1 ? 0 : held / group;  // a division is dear
  row.query = sequence.first + within;
  row.head = kv_head * group + held - within * group;
  row.live = index < rows;
  return row;
}

// The tokens [from, to) that one split of a block goes through: an even share, in whole tiles, of what its rows see together. The last one
// has the newest tokens.
struct Share {
  int from, to;
};

// The first token of the tile that holds `token`: tiles begin at slots that are multiples of their size.
inline int tile_start(constant Int4kvStored& stored, int token, int tile) {
  return token - int((stored.first_slot + uint(token)) % uint(tile));
}

// Plain rows take longer: where shares are small, the newest tokens are one of their own, ...
constant constexpr int kSmallShare = 1024;

// ... else there are fewer others in their share, as many as `plain_cost` says.
inline Share share_of(constant Int4kvAttend& p, thread const Sequence& sequence, Span first, Span last, uint split, int tile, int plain_cost) {
  int start = tile_start(p.k, first.lo, tile), splits = sequence.splits;
  bool plain = splits > 1 && first.exact < last.hi && first.exact > first.coded;
  bool apart = plain && splits > 2 && first.exact - start <= (splits - 1) * kSmallShare;
  int end = plain ? first.exact : last.hi, shares = apart ? splits - 1 : splits, cost = plain && !apart ? last.hi - end + plain_cost : 0;
  int size = ((end - start + cost + tile - 1) / tile + shares - 1) / shares * tile;
  Share share;
  share.from = min(start + int(split) * size, end);
  share.to = int(split) == splits - 1 ? last.hi : min(share.from + size, end);
  return share;
}

inline bool mask_allows(constant Int4kvAttend& p, const device bool* mask, long row, int token) {
  return decode || !p.has_mask || mask[row + long(token) * p.mask.channel];
}

// log2(e) times the score, softcapped when asked for.
inline float capped(constant Int4kvAttend& p, float score) {
  return !decode && p.softcap > 0.0f ? p.softcap * precise::tanh(score / p.softcap) * kLog2e : score;
}

// Rows of a block in threadgroup memory: a gap after every `chunk` channels keeps lanes that own chunks on different banks.
struct RowLayout {
  uint stride, chunk;
};

inline uint row_index(RowLayout layout, uint row, uint channel) {
  return row * layout.stride + channel + channel / layout.chunk;
}

// Query rows of a block on their way. Simdgroups take rows in turn, R at most.
template <int R>
struct AskedQueries {
  RowBits<R> bits;
  RowRegisters signs;
  bool live[R];
};

template <int R>
inline AskedQueries<R> ask_for_queries(
    constant Int4kvAttend& p, const device void* q, const device float* rotation, thread const Sequence& sequence, uint kv_head, uint first,
    uint units, uint simdgroup, uint lane) {
  AskedQueries<R> asked;
  long offsets[R];
  for (uint r = 0; r < R; r++) {
    QueryRow row = query_row(p, sequence, kv_head, first + simdgroup + r * INT4KV_SIMDGROUPS);
    offsets[r] = row_offset(p.q, sequence.batch, row.head, row.query);
    asked.live[r] = row.live;
  }
  asked.signs = signs_of(p.k_rotation, rotation, units, lane);
  load_bits<R>(q, p.q, offsets, units, lane, asked.bits);
  return asked;
}

// The `count` query rows of a block, rotated and scaled.
template <int R>
inline void rotate_queries(
    constant Int4kvAttend& p, thread const AskedQueries<R>& asked, const device float* rotation, uint kv_head, uint count, uint units,
    uint simdgroup, uint lane, RowLayout layout, threadgroup float* rows) {
  float x[R * kMaxUnits] = {};
  numbers_of<R>(asked.bits, p.q.type, units, x);
#pragma unroll
  for (uint r = 0; r < R; r++) {
    uint n = simdgroup + r * INT4KV_SIMDGROUPS;
    if (asked.live[r]) rotate(x + r * kMaxUnits, p.k_rotation, rotation, asked.signs, kv_head, units, lane, !decode);
    for (uint u = 0; u < kMaxUnits; u++) {
      if (u < units && n < count) rows[row_index(layout, n, INT4KV_UNIT * u + lane)] = asked.live[r] ? x[r * kMaxUnits + u] * p.scale : 0.0f;
    }
  }
}

// Maxima and sums of every simdgroup and row of the block, [simdgroup][count].
struct Statistics {
  threadgroup float* maxima;
  threadgroup float* sums;
  uint count;

  float maximum(uint row) const {
    float found = maxima[row];
    for (uint s = 1; s < INT4KV_SIMDGROUPS; s++) found = max(found, maxima[s * count + row]);
    return found;
  }
  float sum(uint row, float maximum) const {
    float total = 0.0f;
    for (uint s = 0; s < INT4KV_SIMDGROUPS; s++) total += sums[s * count + row] * fast::exp2(maxima[s * count + row] - maximum);
    return total;
  }
};

// A row of sums in registers (rows.h), counted from its maximum.
struct Joined {
  float maximum, sum, x[kMaxUnits];
};

// Lane s has the maximum and the sum of part s of a row: what they come to, and in `weight` how much the lane's part counts.
inline Joined joined_statistics(float maximum, float sum, thread float& weight) {
  Joined joined = {simd_max(maximum), 0.0f, {}};
  weight = fast::exp2(maximum - joined.maximum);
  joined.sum = simd_sum(weight * sum);
  return joined;
}

// Where finished rows go, and what they need on the way.
struct Output {
  const device float* rotation;
  const device float* centre;
  device void* out;
  device float* partial;
  device float2* statistics;
};

// A row of all its tokens: divided by their sum, rotated back, the values' centre added, written.
inline void write_output(
    constant Int4kvAttend& p, thread float* x, float sum, thread const RowRegisters& signs, uint batch, uint kv_head, QueryRow row,
    uint units, uint lane, thread const Output& output) {
  float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (uint u = 0; u < kMaxUnits; u++) x[u] *= inverse;
  unrotate(x, p.v_rotation, output.rotation, signs, kv_head, units, lane, !decode);
  if (p.has_v_centre && sum != 0.0f) {
    float mean[kMaxUnits] = {};
    load_row(output.centre, p.v_centre, row_offset(p.v_centre, batch, kv_head, 0), units, lane, mean);
    for (uint u = 0; u < kMaxUnits; u++) x[u] = x[u] + mean[u];
  }
  store_row(output.out, p.out, row_offset(p.out, batch, row.head, row.query), units, lane, x);
}

// Units [first, first + count) of a row as a partial result that merge joins.
inline void write_part(
    constant Int4kvAttend& p, thread const Joined& joined, uint batch, QueryRow row, uint split, uint units, uint first, uint count,
    uint lane, thread const Output& output) {
  long slot = (long(batch * p.heads + row.head) * p.queries + row.query) * p.splits + split;
  for (uint u = 0; u < kMaxUnits; u++) {
    if (u < count) output.partial[slot * long(INT4KV_UNIT * units) + INT4KV_UNIT * (first + u) + lane] = joined.x[u];
  }
  if (first == 0 && lane == 0) output.statistics[slot] = float2(joined.maximum, joined.sum);
}

// One row goes out: as the output when it is all there is, else as a partial result that merge joins.
inline void write_row(
    constant Int4kvAttend& p, thread Joined& joined, uint batch, uint kv_head, QueryRow row, uint split, uint units, uint lane,
    thread const Output& output) {
  if (p.splits == 1) {
    RowRegisters signs = signs_of(p.v_rotation, output.rotation, units, lane);
    return write_output(p, joined.x, joined.sum, signs, batch, kv_head, row, units, lane, output);
  }
  write_part(p, joined, batch, row, split, units, 0, units, lane, output);
}

// The live rows of a block that lie in threadgroup memory.
inline void write_rows(
    constant Int4kvAttend& p, const threadgroup float* rows, thread const Statistics& found, thread const Sequence& sequence,
    uint kv_head, uint block, uint split, uint units, uint simdgroup, uint lane, RowLayout layout, thread const Output& output) {
  for (uint n = simdgroup; n < found.count; n += INT4KV_SIMDGROUPS) {
    QueryRow row = query_row(p, sequence, kv_head, block * found.count + n);
    if (!row.live) continue;
    Joined joined = {found.maximum(n), 0.0f, {}};
    joined.sum = found.sum(n, joined.maximum);
    for (uint u = 0; u < kMaxUnits; u++) {
      if (u < units) joined.x[u] = rows[row_index(layout, n, INT4KV_UNIT * u + lane)];
    }
    write_row(p, joined, sequence.batch, kv_head, row, split, units, lane, output);
  }
}

#endif
