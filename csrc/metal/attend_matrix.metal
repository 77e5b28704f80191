// attend for three to eight query rows at a time, and for chunks in blocks of eight: o = R_v^T softmax2(q' K'^T) V' with
// q' = log2(e) * scale * R_k q, by simdgroup_matrix. Packed codes of a symmetric codebook, one scale per row, head_dim 64, 128 or 256.
//
// Grid: (splits, kv_heads * blocks, batch). A threadgroup owns 8 query rows (the columns of the fragments) of one KV head and one
// share of their tokens; its simdgroups take tiles of 8 * B tokens in turn and keep their own maximum and sums.
//
//   S (8 tokens x 8 columns)  += K (8 tokens x 8 channels) * Q (8 channels x 8 columns)      head_dim / 8 times a block
//   O (8 columns x 8 channels) += P^T (8 columns x 8 tokens) * V (8 tokens x 8 channels)
//
// The four lanes of a fragment row own one token of each block and a quarter of its channels: the same contiguous words of K and
// of V, decoded straight into fragments, so no code is ever moved between lanes. Fragment 4 w + t is pair t of word w of each
// lane; q and o follow that order, and only threadgroup memory knows channels. Each word is read once for all eight columns.
// K's scale multiplies the score, V's the weight. P is transposed through threadgroup memory, once a tile.
// Registers, head_dim 128, 4 bits: 32 for o, 16 and 16 for the words of a tile, 8 for S; at 256 B is 2: 64, 16, 16, 4. Words stay as
// they lie in the planes until they are used: 8 bits take twice as many.
#include "attend.h"
#include "tiles.h"

constant constexpr uint kColumns = INT4KV_COLUMNS;

struct Columns {
  float maximum[2], sum[2];
  long mask[2];
  int from[2], to[2];
};

// Which tokens a pass of a simdgroup reads: tiles from first on, `stride` apart, below last.
struct Pass {
  int first, last, stride;
};

// Columns of the block from rows [8][D] of threadgroup memory to fragments: the pair of lane l of fragment f in pairs[32 f + l].
// Every simdgroup takes columns, in registers between the barriers.
template <int D>
inline void lay_out_queries(threadgroup float* rows, uint simdgroup, uint lane) {
  float x[kColumns / INT4KV_SIMDGROUPS][D / INT4KV_UNIT];
  for (uint n = 0; n < kColumns / INT4KV_SIMDGROUPS; n++) {
    for (uint u = 0; u < D / INT4KV_UNIT; u++) x[n][u] = rows[(simdgroup + n * INT4KV_SIMDGROUPS) * D + INT4KV_UNIT * u + lane];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint n = 0; n < kColumns / INT4KV_SIMDGROUPS; n++) {
    uint column = simdgroup + n * INT4KV_SIMDGROUPS;
    for (uint u = 0; u < D / INT4KV_UNIT; u++) {
      uint word = kWordsPerUnit * u + lane % 16 / 4, t = (lane & 1) * 2 + lane / 16, e = (lane >> 1) & 1;
      uint index = word % (D / 32) * kPairs + t, row = word / (D / 32) * 2 + e;
      rows[(32 * index + fragment_lane(row, column & 6)) * 2 + (column & 1)] = x[n][u];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Scores of a tile -> weights of V, transposed into threadgroup memory: weights[column * (8 B + 4) + token]; 4 floats keep the
// banks apart. Rescales o, one rescale a tile, when a maximum has moved.
template <int D, int B>
inline void softmax_tile(
    constant Int4kvAttend& p, thread Fragment* score, const thread float* k_scale, const thread float* v_scale, int tile,
    const device bool* mask, Place at, thread Columns& columns, threadgroup float* rescales, threadgroup float* weights,
    thread Fragment* o) {
  bool moved = false;
  simdgroup_barrier(mem_flags::mem_threadgroup);  // the weights of the tile before have been read
  for (int e = 0; e < 2; e++) {
    float x[B], maximum = kFloor, sum = 0.0f;
    bool seen[B];
    for (int b = 0; b < B; b++) {
      int token = tile + 8 * b + int(at.row);
      seen[b] = token >= columns.from[e] && token < columns.to[e] && mask_allows(p, mask, columns.mask[e], token);
      x[b] = capped(p, score[b].thread_elements()[e] * k_scale[b]);
      maximum = seen[b] ? max(maximum, x[b]) : maximum;
    }
    maximum = max(columns.maximum[e], column_max(maximum));
    float rescale = fast::exp2(columns.maximum[e] - maximum);
    moved = moved || columns.maximum[e] != maximum;
    for (int b = 0; b < B; b++) {
      float weight = seen[b] ? fast::exp2(x[b] - maximum) : 0.0f;
      sum += weight;
      weights[(at.column + e) * (8 * B + 4) + 8 * b + at.row] = seen[b] ? weight * v_scale[b] : 0.0f;
    }
    columns.maximum[e] = maximum;
    columns.sum[e] = fma(columns.sum[e], rescale, sum);
    if (at.row == 0) rescales[at.column + e] = rescale;
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  if (!simd_any(moved)) return;
  float rescale = rescales[at.row];
  for (int f = 0; f < D / 8; f++) {
    o[f].thread_elements()[0] *= rescale;
    o[f].thread_elements()[1] *= rescale;
  }
}

template <int B>
inline void load_scales(thread const Source& source, int tile, int last, uint row, thread float* scales) {
  for (int b = 0; b < B; b++) scales[b] = source.scale(min(tile + 8 * b + int(row), last - 1), 0);
}

// The keys of the next tile are asked for before the values of this one are used.
template <int D, int B>
inline void read_codes(
    constant Int4kvAttend& p, thread const Source& k, thread const Source& v, Pass pass, const device bool* mask,
    const threadgroup float2* queries, Place at, thread Columns& columns, threadgroup float* rescales, threadgroup float* weights,
    thread Fragment* o) {
  PlaneWords<D / 32> k_words[B], v_words[B];
  if (pass.first < pass.last) load_tile<D, B>(k, pass.first, pass.last, at, k_words);
  for (int tile = pass.first; tile < pass.last; tile += pass.stride) {
    float k_scale[B], v_scale[B];
    Fragment score[B];
    load_tile<D, B>(v, tile, pass.last, at, v_words);
    load_scales<B>(k, tile, pass.last, at.row, k_scale);
    load_scales<B>(v, tile, pass.last, at.row, v_scale);
    score_codes<D, B>(k_words, k.coding, queries, at, score);
    load_tile<D, B>(k, tile + pass.stride, pass.last, at, k_words);
    softmax_tile<D, B>(p, score, k_scale, v_scale, tile, mask, at, columns, rescales, weights, o);
    add_codes<D, B>(v_words, v.coding, weights, at, o);
  }
}

template <int D, int B>
inline void read_plain(
    constant Int4kvAttend& p, thread const Source& k, thread const Source& v, Pass pass, const device bool* mask,
    const threadgroup float2* queries, Place at, thread Columns& columns, threadgroup float* rescales, threadgroup float* weights,
    thread Fragment* o) {
  for (int tile = pass.first; tile < pass.last; tile += pass.stride) {
    float k_scale[B], v_scale[B];
    Fragment score[B];
    for (int b = 0; b < B; b++) {
      k_scale[b] = 1.0f;
      v_scale[b] = plain_scale<D>(v, v.row(min(tile + 8 * b + int(at.row), pass.last - 1)), at.quarter);
    }
    score_plain<D, B>(k, tile, pass.last, queries, at, score);
    softmax_tile<D, B>(p, score, k_scale, v_scale, tile, mask, at, columns, rescales, weights, o);
    add_plain<D, B>(v, tile, pass.last, v_scale, weights, at, o);
  }
}

// Joins the simdgroups in turns into rows [8][D], where the queries were.
template <int D>
inline void join_columns_in_turns(
    thread const Columns& columns, thread Fragment* o, thread const Statistics& found, uint simdgroup, Place at, threadgroup float* rows) {
  for (int e = 0; e < 2; e++) {
    float sum = column_sum(columns.sum[e]);
    if (at.row != 0) continue;
    found.maxima[simdgroup * kColumns + at.column + e] = columns.maximum[e];
    found.sums[simdgroup * kColumns + at.column + e] = sum;
  }
  for (uint turn = 0; turn < INT4KV_SIMDGROUPS; turn++) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (turn != simdgroup) continue;
    float weight = fast::exp2(found.maxima[simdgroup * kColumns + at.row] - found.maximum(at.row));
    for (uint f = 0; f < D / 8; f++) {
      for (uint e = 0; e < 2; e++) {
        threadgroup float* to = rows + at.row * D + channel_of(at.quarter * (D / 32) + f / kPairs, f % kPairs, e);
        float part = weight * o[f].thread_elements()[e];
        *to = turn == 0 ? part : *to + part;
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

template <int D, int B>
[[kernel]] void attend_matrix(
    const device void* q [[buffer(0)]], const device void* k_codes [[buffer(1)]], const device half* k_scales [[buffer(2)]],
    const device void* v_codes [[buffer(3)]], const device half* v_scales [[buffer(4)]], const device void* k_sink [[buffer(5)]],
    const device void* v_sink [[buffer(6)]], const device void* k_recent [[buffer(7)]], const device void* v_recent [[buffer(8)]],
    const device float* k_rotation [[buffer(9)]], const device float* v_rotation [[buffer(10)]],
    const device float* v_centre [[buffer(11)]], const device bool* mask [[buffer(12)]], device void* out [[buffer(13)]],
    device float* partial [[buffer(14)]], device float2* statistics [[buffer(15)]], constant Int4kvAttend& p [[buffer(16)]],
    uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float rows[kColumns * D], weights[INT4KV_SIMDGROUPS * kColumns * (8 * B + 4)];
  threadgroup float rescales[INT4KV_SIMDGROUPS * kColumns], maxima[INT4KV_SIMDGROUPS * kColumns], sums[INT4KV_SIMDGROUPS * kColumns];
  uint split = group.x, kv_head = group.y / p.blocks, block = group.y % p.blocks, batch = group.z;
  load_queries(p, q, k_rotation, batch, kv_head, block, kColumns, simdgroup, lane, D, rows);
  lay_out_queries<D>(rows, simdgroup, lane);

  Place at = {lane, fragment_row(lane), fragment_column(lane), fragment_column(lane) / 2};
  Span first = span_of(p, query_row(p, kv_head, block * kColumns).query);
  Span last = span_of(p, query_row(p, kv_head, block * kColumns + kColumns - 1).query), mine[2];
  Columns columns;
  for (uint e = 0; e < 2; e++) {
    QueryRow row = query_row(p, kv_head, block * kColumns + at.column + e);
    mine[e] = span_of(p, row.query);
    columns.mask[e] = row_offset(p.mask, batch, row.head, row.query);
    columns.maximum[e] = kFloor;
    columns.sum[e] = 0.0f;
  }
  Fragment o[D / 8];
  for (int f = 0; f < D / 8; f++) o[f] = fragment_of(0.0f, 0.0f);

  Share share = share_of(p, first, last, split, 8 * B);
  const threadgroup float2* queries = (const threadgroup float2*)rows;
  threadgroup float* my_weights = weights + simdgroup * kColumns * (8 * B + 4);
  threadgroup float* my_rescales = rescales + simdgroup * kColumns;
  int offset = int(simdgroup) * 8 * B, stride = int(INT4KV_SIMDGROUPS) * 8 * B;
  Pass pass = {max(first.coded, share.from) + offset, min(last.exact, share.to), stride};
  for (int e = 0; e < 2; e++) columns.from[e] = mine[e].coded, columns.to[e] = min(mine[e].exact, share.to);
  Source k = source_of(p.k, {k_bits, codebook}, k_codes, k_scales, batch, kv_head, 0);
  Source v = source_of(p.v, {v_bits, codebook}, v_codes, v_scales, batch, kv_head, 0);
  read_codes<D, B>(p, k, v, pass, mask, queries, at, columns, my_rescales, my_weights, o);

  for (int newest = p.sinks > 0 ? 0 : 1; newest < 2; newest++) {
    pass.first = max(newest ? max(first.exact, p.recent_from) : first.lo, share.from) + offset;
    pass.last = min(newest ? last.hi : last.coded, share.to);
    for (int e = 0; e < 2; e++) {
      columns.from[e] = newest ? mine[e].exact : mine[e].lo;
      columns.to[e] = min(newest ? mine[e].hi : mine[e].coded, share.to);
    }
    k = plain_source(newest ? p.k_recent : p.k_sink, newest ? k_recent : k_sink, batch, kv_head, newest ? p.recent_from : 0);
    v = plain_source(newest ? p.v_recent : p.v_sink, newest ? v_recent : v_sink, batch, kv_head, newest ? p.recent_from : 0);
    read_plain<D, B>(p, k, v, pass, mask, queries, at, columns, my_rescales, my_weights, o);
  }

  Statistics found = {maxima, sums, kColumns};
  join_columns_in_turns<D>(columns, o, found, simdgroup, at, rows);
  Output output = {v_rotation, v_centre, out, partial, statistics};
  write_rows(p, rows, found, batch, kv_head, block, split, simdgroup, lane, D, output);
}

#define INT4KV_ATTEND_MATRIX(D, B) \
  template [[host_name("attend_matrix_" #D)]] [[kernel]] decltype(attend_matrix<D, B>) attend_matrix<D, B>;
INT4KV_ATTEND_MATRIX(64, 4)
INT4KV_ATTEND_MATRIX(128, 4)
INT4KV_ATTEND_MATRIX(256, 2)
