// attend for three to eight query rows at a time, and for chunks in blocks of eight: o = R_v^T softmax2(q' K'^T) V' with
// q' = log2(e) * scale * R_k q, on matrix units. Packed codes of a symmetric codebook, one scale per row, head_dim 64, 128 or 256.
//
// Grid: (splits, kv_heads * blocks, batch or sequences). A threadgroup owns 8 query rows, the columns of the products, of one KV head
// and one share of their tokens; its simdgroups take tiles of 8 * B tokens in turn and keep their own maximum and sums. tiles.h says which
// lane owns which token and channel. Each word of codes is read once for all eight columns, 16 bytes at a time; K's scale multiplies
// the score, V's the weight. The keys of the next tile are asked for before the values of this one are used.
//
// Scores count from a reference that is the maximum of a column only when it is set: it is raised when a score is more than
// kHeadroom above it, so that most tiles neither exchange maxima nor rescale their sums. A tile whose rows lie together and are
// seen by every column takes no care of tokens one by one: the first and last tiles and the end of a ring do.
// Registers, head_dim 128, 4 bits: 32 for o, 16 and 16 for the words of a tile, 8 for S; at 256 B is 2: 64, 16, 16, 4. Words stay as
// they lie in the planes until they are used: 8 bits take twice as many.
#include "tiles.h"

constant constexpr float kUnseen = -1e30f;   // the score of a token that a column does not see
constant constexpr float kHeadroom = 8.0f;   // weights go up to 2^8, which fp16 holds well

// The query rows whose scores a lane holds: what they have come to, and the tokens [from, to) that they see in a pass.
struct Columns {
  float maximum[kLaneColumns], sum[kLaneColumns];
  long mask[kLaneColumns];
  int from[kLaneColumns], to[kLaneColumns];
};

// Which tokens a pass of a simdgroup reads: tiles from first on, `stride` apart, below last.
struct Pass {
  int first, last, stride;
};

// What every step of the loop needs of the threadgroup's task.
struct Task {
  const device bool* mask;
  Place at;
  threadgroup float* scratch;  // of this simdgroup
};

inline float reference_of(float maximum) {
  return maximum == kFloor ? 0.0f : maximum;
}

// x[e * N + i] = log2 of the weight of token i for column e, counted from the column's reference.
template <int N>
inline void relative_scores(
    constant Int4kvAttend& p, thread const float* score, thread const Scales<N>& scales, thread const Columns& columns, thread float* x) {
  for (int e = 0; e < kLaneColumns; e++) {
    float reference = reference_of(columns.maximum[e]);
    for (int i = 0; i < N; i++) x[e * N + i] = fma(score[e * N + i], scale_of(scales, i), -reference);
  }
  if (p.softcap == 0.0f) return;
  for (int e = 0; e < kLaneColumns; e++) {
    float reference = reference_of(columns.maximum[e]);
    for (int i = 0; i < N; i++) x[e * N + i] = capped(p, score[e * N + i] * scale_of(scales, i)) - reference;
  }
}

inline bool sees_all(constant Int4kvAttend& p, thread const Columns& columns, int token, int count) {
  bool all = p.has_mask == 0;
  for (int e = 0; e < kLaneColumns; e++) all = all && token >= columns.from[e] && token + count <= columns.to[e];
  return all;
}

// Of a token that no column of the lane sees the value's scale may be anything.
template <int N>
inline void hide_unseen(
    constant Int4kvAttend& p, thread const Columns& columns, thread const Task& task, int token, thread float* x,
    thread Scales<N>& v_scale) {
  for (int i = 0; i < N; i++) {
    bool any = false;
    for (int e = 0; e < kLaneColumns; e++) {
      bool seen = token + i >= columns.from[e] && token + i < columns.to[e] && mask_allows(p, task.mask, columns.mask[e], token + i);
      if (!seen) x[e * N + i] = kUnseen;
      any = any || seen;
    }
    if (!any) set_scale(v_scale, i, 0.0f);
  }
}

template <int N>
inline float largest(thread const float* x) {
  float found = x[0];
  for (int i = 1; i < N; i++) found = max(found, x[i]);
  return found;
}

// Sets every column's reference to its maximum, where that is higher or the first; what has been summed up follows.
template <int D, int N>
inline void raise_references(
    thread const float* x, thread const Scales<N>& v_scale, thread const Task& task, thread Columns& columns, thread Sums<D>& sums) {
  float by[kLaneColumns];
  for (int e = 0; e < kLaneColumns; e++) {
    float before = columns.maximum[e], top = column_max(largest<N>(x + e * N));
    bool is_first = before == kFloor, raises = top > 0.5f * kUnseen && (is_first || top > 0.0f);
    float after = raises ? reference_of(before) + top : before;
    by[e] = fast::exp2(before - after);
    columns.maximum[e] = after;
    columns.sum[e] *= by[e];
  }
  rescale<D, N>(sums, by, v_scale, task.at);
}

// Scores of a tile -> weights, in place: 2^(score - reference), 0 where not seen. `whole`: every column sees every token.
template <int D, int N>
inline void softmax_tile(
    constant Int4kvAttend& p, thread float* score, thread const Scales<N>& k_scale, thread Scales<N>& v_scale, int token, bool whole,
    thread const Task& task, thread Columns& columns, thread Sums<D>& sums) {
  float x[kLaneColumns * N];
  relative_scores<N>(p, score, k_scale, columns, x);
  if (!whole) hide_unseen<N>(p, columns, task, token, x, v_scale);
  bool outgrown = outgrows<D, N>(sums, v_scale);
  for (int e = 0; e < kLaneColumns; e++) outgrown = outgrown || columns.maximum[e] == kFloor || largest<N>(x + e * N) > kHeadroom;
  if (simd_any(outgrown)) {
    raise_references<D, N>(x, v_scale, task, columns, sums);
    relative_scores<N>(p, score, k_scale, columns, x);
    if (!whole) hide_unseen<N>(p, columns, task, token, x, v_scale);
  }
  for (int e = 0; e < kLaneColumns; e++) {
    for (int i = 0; i < N; i++) {
      score[e * N + i] = fast::exp2(x[e * N + i]);
      columns.sum[e] += score[e * N + i];
    }
  }
}

template <int D, int B>
inline void read_codes(
    constant Int4kvAttend& p, thread const Source& k, thread const Source& v, Pass pass, thread const Task& task,
    thread const Queries<D>& queries, thread Columns& columns, thread Sums<D>& sums) {
  constexpr int N = B * kTokensPerBlock;
  KeyWords<D, B> k_words;
  bool together = simd_all(k.is_together(pass.first, 8 * B) && v.is_together(pass.first, 8 * B));
  if (pass.first < pass.last) load_keys<D, B>(k, pass.first, pass.last, together, task.at, k_words);
  request_tile<D, B>(v, pass.first + pass.stride, task.at);
  for (int tile = pass.first; tile < pass.last; tile += pass.stride) {
    bool whole = simd_all(together && sees_all(p, columns, tile, 8 * B));
    ValueWords<D, B> v_words;
    Scales<N> k_scale, v_scale;
    float score[kLaneColumns * N];
    load_values<D, B>(v, tile, pass.last, together, task.at, v_words);
    load_scales<D, B>(k, tile, pass.last, together, task.at, k_scale);
    load_scales<D, B>(v, tile, pass.last, together, task.at, v_scale);
    score_codes<D, B>(k_words, k.coding, queries, task.at, score);
    together = simd_all(k.is_together(tile + pass.stride, 8 * B) && v.is_together(tile + pass.stride, 8 * B));
    load_keys<D, B>(k, tile + pass.stride, pass.last, together, task.at, k_words);
    request_tile<D, B>(k, tile + 2 * pass.stride, task.at);
    request_tile<D, B>(v, tile + 2 * pass.stride, task.at);
    softmax_tile<D, N>(p, score, k_scale, v_scale, tile + task.at.token(B), whole, task, columns, sums);
    add_codes<D, B>(v_words, v.coding, score, v_scale, task.at, task.scratch, sums);
  }
}

template <int D>
inline void read_plain(
    constant Int4kvAttend& p, thread const Source& k, thread const Source& v, Pass pass, thread const Task& task,
    thread const Queries<D>& queries, const threadgroup float* rows, thread Columns& columns, thread Sums<D>& sums) {
  constexpr int N = kTokensPerBlock;
  for (int tile = pass.first; tile < pass.last; tile += pass.stride) {
    Scales<N> one, scale;
    float score[kLaneColumns * N];
    for (int i = 0; i < N; i++) set_scale(one, i, 1.0f), set_scale(scale, i, 1.0f);
    score_plain<D>(k, tile, pass.last, queries, task.at, rows, score);
    softmax_tile<D, N>(p, score, one, scale, tile + task.at.token(1), false, task, columns, sums);
    add_plain<D>(v, tile, pass.last, score, task.at, task.scratch, sums);
  }
}

// Joins the simdgroups in turns into rows.
template <int D>
inline void join_in_turns(
    thread const Columns& columns, thread Sums<D>& sums, thread const Statistics& found, uint simdgroup, Place at,
    threadgroup float* rows) {
  for (int e = 0; e < kLaneColumns; e++) {
    float sum = column_sum(columns.sum[e]);
    if (at.token(1) != 0) continue;
    found.maxima[simdgroup * INT4KV_COLUMNS + at.column(e)] = columns.maximum[e];
    found.sums[simdgroup * INT4KV_COLUMNS + at.column(e)] = sum;
  }
  for (uint turn = 0; turn < INT4KV_SIMDGROUPS; turn++) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (turn == simdgroup) join_sums<D>(sums, found, simdgroup, turn == 0, at, rows);
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
    device float* partial [[buffer(14)]], device float2* statistics [[buffer(15)]], const device int* block_table [[buffer(16)]],
    const device int* lengths [[buffer(17)]], const device int* query_starts [[buffer(18)]], const device int* rings [[buffer(19)]],
    const device int* recent_starts [[buffer(20)]], constant Int4kvAttend& p [[buffer(21)]],
    uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  INT4KV_THREADGROUP(float, rows, INT4KV_COLUMNS * (D + 12));
  INT4KV_THREADGROUP(float, scratch, scratch_size<D>());
  INT4KV_THREADGROUP(float, maxima, INT4KV_SIMDGROUPS * INT4KV_COLUMNS);
  INT4KV_THREADGROUP(float, total, INT4KV_SIMDGROUPS * INT4KV_COLUMNS);
  uint split = group.x, kv_head = group.y / p.blocks, block = group.y % p.blocks;
  Sequence sequence = sequence_of(p, {block_table, lengths, query_starts, rings, recent_starts}, group.z);
  if (paged && block * INT4KV_COLUMNS >= sequence.rows(p)) return;
  Task task = {mask, place_of(lane), scratch + simdgroup * (scratch_size<D>() / INT4KV_SIMDGROUPS)};
  Span first = span_of(p, sequence, query_row(p, sequence, kv_head, block * INT4KV_COLUMNS).query);
  Span last = span_of(p, sequence, query_row(p, sequence, kv_head, block * INT4KV_COLUMNS + INT4KV_COLUMNS - 1).query), mine[kLaneColumns];
  Share share = share_of(p, sequence, first, last, split, 8 * B);
  Pass pass;
  pass.last = min(last.exact, share.to);
  pass.first = share.from < pass.last ? tile_start(p.k, max(first.coded, share.from), 8 * B) + int(simdgroup) * 8 * B : pass.last;
  pass.stride = int(INT4KV_SIMDGROUPS) * 8 * B;
  Source k = code_source(p, p.k, coding_of(k_bits, codebook, lane), k_codes, k_scales, sequence, kv_head);
  Source v = code_source(p, p.v, coding_of(v_bits, codebook, lane), v_codes, v_scales, sequence, kv_head);
  request_tile<D, B>(k, pass.first, task.at);
  request_tile<D, B>(v, pass.first, task.at);

  load_queries<INT4KV_COLUMNS / INT4KV_SIMDGROUPS>(
      p, q, k_rotation, sequence, kv_head, block, INT4KV_COLUMNS, D / INT4KV_UNIT, simdgroup, lane, row_layout<D>(), rows);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  Queries<D> queries = lay_out_queries<D>(rows, scratch, simdgroup, task.at);

  Columns columns;
  for (int e = 0; e < kLaneColumns; e++) {
    QueryRow row = query_row(p, sequence, kv_head, block * INT4KV_COLUMNS + task.at.column(e));
    mine[e] = span_of(p, sequence, row.query);
    columns.mask[e] = row_offset(p.mask, sequence.batch, row.head, row.query);
    columns.maximum[e] = kFloor;
    columns.sum[e] = 0.0f;
  }
  Sums<D> sums;
  clear(sums);

  for (int e = 0; e < kLaneColumns; e++) {
    columns.from[e] = max(mine[e].coded, share.from);
    columns.to[e] = min(mine[e].exact, share.to);
  }
  read_codes<D, B>(p, k, v, pass, task, queries, columns, sums);

  pass.stride = int(INT4KV_SIMDGROUPS) * 8;
  for (int newest = p.sinks > 0 ? 0 : 1; newest < 2; newest++) {
    uint held = newest ? sequence.ring : sequence.batch;
    int origin = newest ? sequence.recent_from : 0;
    pass.first = max(newest ? max(first.exact, sequence.recent_from) : first.lo, share.from) + int(simdgroup) * 8;
    pass.last = min(newest ? last.hi : last.coded, share.to);
    for (int e = 0; e < kLaneColumns; e++) {
      columns.from[e] = newest ? mine[e].exact : mine[e].lo;
      columns.to[e] = min(newest ? mine[e].hi : mine[e].coded, share.to);
    }
    k = plain_source(newest ? p.k_recent : p.k_sink, newest ? k_recent : k_sink, held, kv_head, origin);
    v = plain_source(newest ? p.v_recent : p.v_sink, newest ? v_recent : v_sink, held, kv_head, origin);
    read_plain<D>(p, k, v, pass, task, queries, rows, columns, sums);
  }

  Statistics found = {maxima, total, INT4KV_COLUMNS};
  join_in_turns<D>(columns, sums, found, simdgroup, task.at, rows);
  Output output = {v_rotation, v_centre, out, partial, statistics};
  write_rows(p, rows, found, sequence, kv_head, block, split, D / INT4KV_UNIT, simdgroup, lane, row_layout<D>(), output);
}

INT4KV_ENTRY(attend_matrix_64, INT4KV_SIMDGROUPS, attend_matrix<64, 4>)
INT4KV_ENTRY(attend_matrix_128, INT4KV_SIMDGROUPS, attend_matrix<128, 4>)
INT4KV_ENTRY(attend_matrix_256, INT4KV_SIMDGROUPS, attend_matrix<256, 2>)
