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
#include "exact_rows.h"
#include "tiles.h"

constant constexpr float kUnseen = -1e30f;   // the score of a token that a column does not see
constant constexpr float kHeadroom = 8.0f;   // weights go up to 2^8, which fp16 holds well

// The query rows whose scores a lane holds: what they have come to, and the tokens [from, to) that they see in a pass. Scores above
// `headroom` raise the reference: all do until there is one.
struct Columns {
  float reference[kLaneColumns], headroom[kLaneColumns], sum[kLaneColumns];
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

// x[e * N + i] = log2 of the weight of token i for column e, counted from the column's reference.
template <int N>
struct Relative {
  float x[kLaneColumns * N];
  Scales<N> v_scale;
};

// Where not every column sees every token, or scores are capped. Of a token that no column of the lane sees the value's scale may be
// anything.
template <int N>
INT4KV_SELDOM Relative<N> careful_scores(
    constant Int4kvAttend& p, Relative<N> found, Columns columns, const device bool* mask, Place at, int tile) {
  for (int i = 0; i < N; i++) {
    bool any = false;
    int token = tile + at.token(N / kTokensPerBlock, i);
    for (int e = 0; e < kLaneColumns; e++) {
      bool seen = token >= columns.from[e] && token < columns.to[e] && mask_allows(p, mask, columns.mask[e], token);
      found.x[e * N + i] = seen ? capped(p, found.x[e * N + i]) - columns.reference[e] : kUnseen;
      any = any || seen;
    }
    if (!any) set_scale(found.v_scale, i, 0.0f);
  }
  return found;
}

// `whole`: every column sees every token, and scores are not capped.
template <int N>
inline void relative_scores(
    constant Int4kvAttend& p, thread const float* score, thread const Scales<N>& k_scale, thread const Columns& columns,
    thread const Task& task, int tile, bool whole, thread Relative<N>& found) {
  for (int e = 0; e < kLaneColumns; e++) {
    for (int i = 0; i < N; i++) found.x[e * N + i] = fma(score[e * N + i], scale_of(k_scale, i), whole ? -columns.reference[e] : 0.0f);
  }
  if (!whole) found = careful_scores<N>(p, found, columns, task.mask, task.at, tile);
}

template <int N>
inline float largest(thread const float* x) {
  float found = x[0];
  for (int i = 1; i < N; i++) found = max(found, x[i]);
  return found;
}

// Sets every column's reference to its maximum, where that is higher or the first; what has been summed up follows, and so do the scores.
template <int D, int N>
inline void raise_references(thread Relative<N>& found, thread const Task& task, thread Columns& columns, thread Sums<D>& sums) {
  float by[kLaneColumns];
  bool filled = false;
  for (int e = 0; e < kLaneColumns; e++) filled = filled || columns.sum[e] != 0.0f;
  filled = simd_any(filled);
  for (int e = 0; e < kLaneColumns; e++) {
    float top = column_max(largest<N>(found.x + e * N));
    bool is_first = columns.headroom[e] < 0.0f, raises = top > 0.5f * kUnseen && (is_first || top > 0.0f);
    float raised = raises ? top : 0.0f;
    by[e] = is_first ? 0.0f : fast::exp2(-raised);  // nothing has been summed up, and a first maximum may be far below 0
    columns.reference[e] += raised;
    columns.headroom[e] = raises ? kHeadroom : columns.headroom[e];
    columns.sum[e] *= by[e];
    for (int i = 0; i < N; i++) found.x[e * N + i] -= raised;
  }
  rescale<D, N>(sums, by, filled, found.v_scale, task.at);
}

// Scores of a tile -> weights, in place: 2^(score - reference), 0 where not seen.
template <int D, int N>
inline void softmax_tile(
    constant Int4kvAttend& p, thread float* score, thread const Scales<N>& k_scale, thread Scales<N>& v_scale, int tile, bool whole,
    thread const Task& task, thread Columns& columns, thread Sums<D>& sums) {
  Relative<N> found;
  found.v_scale = v_scale;
  relative_scores<N>(p, score, k_scale, columns, task, tile, whole, found);
  bool outgrown = outgrows<D, N>(sums, found.v_scale);
  for (int e = 0; e < kLaneColumns; e++) outgrown = outgrown || largest<N>(found.x + e * N) > columns.headroom[e];
  if (simd_any(outgrown)) raise_references<D, N>(found, task, columns, sums);
  v_scale = found.v_scale;
  for (int e = 0; e < kLaneColumns; e++) {
    for (int i = 0; i < N; i++) {
      score[e * N + i] = fast::exp2(found.x[e * N + i]);
      columns.sum[e] += score[e * N + i];
    }
  }
}

// Where tiles begin that all columns of the simdgroup see whole, when scores need no other care.
struct Common {
  int from;
  uint count;

  bool has(int tile) const thread {
    return uint(tile - from) < count;
  }
};

inline Common common_of(constant Int4kvAttend& p, thread const Columns& columns, int tile_size) {
  int from = columns.from[0], to = columns.to[0];
  if (!decode) {
    for (int e = 1; e < kLaneColumns; e++) from = max(from, columns.from[e]), to = min(to, columns.to[e]);
    from = simd_max(from);
    to = p.has_mask || p.softcap > 0.0f ? from : simd_min(to);
  }
  return {from, uint(max(to - from - tile_size + 1, 0))};
}

template <int D, int B>
inline void read_codes(
    constant Int4kvAttend& p, thread const Source& k, thread const Source& v, Pass pass, thread Tiles<D, B>& tiles,
    thread const Task& task, thread const Queries<D>& queries, thread Columns& columns, thread Sums<D>& sums) {
  constexpr int N = B * kTokensPerBlock;
  Common common = common_of(p, columns, 8 * B);
  begin_codes<D>(v.coding, task.at, sums);
  for (int tile = pass.first; tile < pass.last; tile += pass.stride) {
    Scales<N> k_scale, v_scale;
    float score[kLaneColumns * N];
    open_tile<D, B>(tiles, k, v, tile, pass.last, task.at, k_scale, v_scale);
    score_codes<D, B>(tiles, k.coding, queries, task.at, score);
    next_keys<D, B>(tiles, k, v, tile, pass.last, pass.stride, task.at);
    softmax_tile<D, N>(p, score, k_scale, v_scale, tile, common.has(tile), task, columns, sums);
    add_codes<D, B>(tiles, v.coding, score, v_scale, task.at, task.scratch, sums);
    next_tile<D, B>(tiles, k, v, tile, pass.last, pass.stride, task.at);
  }
  settle<D>(v.coding, sums);
}

template <int D>
inline void read_plain(
    constant Int4kvAttend& p, thread const Source& k, thread const Source& v, Pass pass, thread const Task& task,
    thread const Queries<D>& queries, thread Columns& columns, thread Sums<D>& sums) {
  constexpr int N = kTokensPerBlock;
  for (int tile = pass.first; tile < pass.last; tile += pass.stride) {
    Scales<N> one, scale;
    float score[kLaneColumns * N];
    for (int i = 0; i < N; i++) set_scale(one, i, 1.0f), set_scale(scale, i, 1.0f);
    score_plain<D>(k, tile, pass.last, queries, task.at, score);
    softmax_tile<D, N>(p, score, one, scale, tile, false, task, columns, sums);
    add_plain<D>(v, tile, pass.last, score, task.at, task.scratch, sums);
  }
}

// The pass over the first tokens, or over the newest ones.
inline Pass plain_pass(thread const Sequence& sequence, Span first, Span last, Share share, bool newest, uint simdgroup) {
  Pass pass;
  pass.first = max(newest ? max(first.exact, sequence.recent_from) : first.lo, share.from) + int(simdgroup) * 8;
  pass.last = min(newest ? last.hi : last.coded, share.to);
  pass.stride = int(INT4KV_SIMDGROUPS) * 8;
  return pass;
}

// The plain rows of a call, and what of them is whose.
struct PlainRows {
  const device void *k_sink, *v_sink, *k_recent, *v_recent;
  Span first, last;  // of the first and the last query row
  uint kv_head, simdgroup;
};

template <int D>
inline void read_all_plain(
    constant Int4kvAttend& p, thread const PlainRows& rows, thread const Sequence& sequence, Share share, thread const Span* mine,
    thread const Task& task, thread const Queries<D>& queries, thread Columns& columns, thread Sums<D>& sums) {
  for (int newest = !decode && p.sinks > 0 ? 0 : 1; newest < 2; newest++) {
    uint held = newest ? sequence.ring : sequence.batch;
    int origin = newest ? sequence.recent_from : 0;
    Pass pass = plain_pass(sequence, rows.first, rows.last, share, newest != 0, rows.simdgroup);
    if (pass.first >= pass.last) continue;
    for (int e = 0; e < kLaneColumns; e++) {
      columns.from[e] = newest ? mine[e].exact : mine[e].lo;
      columns.to[e] = min(newest ? mine[e].hi : mine[e].coded, share.to);
    }
    Source k = plain_source(newest ? p.k_recent : p.k_sink, newest ? rows.k_recent : rows.k_sink, held, rows.kv_head, origin);
    Source v = plain_source(newest ? p.v_recent : p.v_sink, newest ? rows.v_recent : rows.v_sink, held, rows.kv_head, origin);
    read_plain<D>(p, k, v, pass, task, queries, columns, sums);
  }
}

// Asks for the first rows of a pass; of fp16 ones for all channels.
template <int D>
inline void ask_for_rows(Source rows, Pass pass, uint lane) {
  int token = pass.first + int(lane / 4);
  if (token < pass.last && 64 * (lane % 4) < D) ask_for(rows.row(token) + 128 * (lane % 4));
}

// Leaves the maxima and sums of this simdgroup where all will look for them.
inline void leave_statistics(thread const Columns& columns, thread const Statistics& found, uint simdgroup, Place at) {
  for (int e = 0; e < kLaneColumns; e++) {
    float sum = column_sum(columns.sum[e]);
    if (at.token(1, 0) != 0) continue;
    found.maxima[simdgroup * INT4KV_COLUMNS + at.column(e)] = columns.headroom[e] < 0.0f ? kFloor : columns.reference[e];
    found.sums[simdgroup * INT4KV_COLUMNS + at.column(e)] = sum;
  }
}

// What the simdgroups of a threadgroup have joined, and the part of a simdgroup in writing it.
struct JoinedRows {
  Statistics found;
  const threadgroup float *scratch, *rows;
  uint kv_head, block, split, simdgroup, lane;
};

// Simdgroups that write a row together.
constant constexpr uint kSharing = INT4KV_SIMDGROUPS > INT4KV_COLUMNS ? INT4KV_SIMDGROUPS / INT4KV_COLUMNS : 1;

// `sharing` simdgroups write a part of a row each; a finished row is one simdgroup's.
template <int D, int B, uint sharing>
inline void write_joined(
    constant Int4kvAttend& p, thread const JoinedRows& of, thread const Sequence& sequence, thread const Output& output) {
  constexpr uint kUnits = D / INT4KV_UNIT, kOwn = kUnits / sharing;
  uint first = of.simdgroup % sharing * kOwn;
  for (uint n = of.simdgroup / sharing; n < INT4KV_COLUMNS; n += INT4KV_SIMDGROUPS / sharing) {
    QueryRow row = query_row(p, sequence, of.kv_head, of.block * INT4KV_COLUMNS + n);
    if (!row.live) continue;
    Joined joined = joined_row<D, B, kOwn>(of.found, n, first, of.lane, of.scratch, of.rows);
    if (sharing > 1) write_part(p, joined, sequence.batch, row, of.split, kUnits, first, kOwn, of.lane, output);
    else write_row(p, joined, sequence.batch, of.kv_head, row, of.split, kUnits, of.lane, output);
  }
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
  INT4KV_SCRATCH(float, scratch, (scratch_size<D, B>()));
  INT4KV_THREADGROUP(float, maxima, INT4KV_SIMDGROUPS * INT4KV_COLUMNS);
  INT4KV_THREADGROUP(float, total, INT4KV_SIMDGROUPS * INT4KV_COLUMNS);
  uint split = group.x, kv_head = p.blocks == 1 ? group.y : group.y / p.blocks, block = group.y - kv_head * p.blocks;
  if (paged) await_tensors();  // the sequence is in tensors
  Sequence sequence = sequence_of(p, {block_table, lengths, query_starts, rings, recent_starts}, group.z);
  if (paged && block * INT4KV_COLUMNS >= sequence.rows(p)) return;
  Task task = {mask, place_of<D>(lane), scratch_of<D, B>(scratch, simdgroup)};
  Span first = span_of(p, sequence, query_row(p, sequence, kv_head, block * INT4KV_COLUMNS).query);
  Span last = span_of(p, sequence, query_row(p, sequence, kv_head, block * INT4KV_COLUMNS + INT4KV_COLUMNS - 1).query), mine[kLaneColumns];
  Share share = share_of(p, sequence, first, last, split, 8 * B, plain_cost<D, B>());
  Pass pass;
  pass.last = min(last.exact, share.to);
  pass.first = share.from < pass.last ? tile_start(p.k, max(first.coded, share.from), 8 * B) + int(simdgroup) * 8 * B : pass.last;
  pass.stride = int(INT4KV_SIMDGROUPS) * 8 * B;
  Source k = code_source(p, p.k, coding_of(k_bits, codebook, lane), k_codes, k_scales, sequence, kv_head);
  Source v = code_source(p, p.v, coding_of(v_bits, codebook, lane), v_codes, v_scales, sequence, kv_head);
  Tiles<D, B> tiles = tiles_of<D, B>(k, v, pass.first, pass.last, task.at, task.scratch);
  if (!paged) await_tensors();
  constexpr uint kRows = (INT4KV_COLUMNS + INT4KV_SIMDGROUPS - 1) / INT4KV_SIMDGROUPS, kUnits = D / INT4KV_UNIT;
  AskedQueries<kRows> asked =
      ask_for_queries<kRows>(p, q, k_rotation, sequence, kv_head, block * INT4KV_COLUMNS, kUnits, simdgroup, lane);
  Pass newest_pass = plain_pass(sequence, first, last, share, true, simdgroup);
  if (newest_pass.first < newest_pass.last) {
    ask_for_rows<D>(plain_source(p.k_recent, k_recent, sequence.ring, kv_head, sequence.recent_from), newest_pass, lane);
    ask_for_rows<D>(plain_source(p.v_recent, v_recent, sequence.ring, kv_head, sequence.recent_from), newest_pass, lane);
  }
  first_tile<D, B>(tiles, k, v, pass.first, pass.last, task.at);
  rotate_queries<kRows>(p, asked, k_rotation, kv_head, INT4KV_COLUMNS, kUnits, simdgroup, lane, row_layout<D>(), rows);
  Queries<D> queries = lay_out_queries<D>(rows, scratch, simdgroup, task.at);

  Columns columns;
  for (int e = 0; e < kLaneColumns; e++) {
    QueryRow row = query_row(p, sequence, kv_head, block * INT4KV_COLUMNS + task.at.column(e));
    mine[e] = span_of(p, sequence, row.query);
    columns.mask[e] = row_offset(p.mask, sequence.batch, row.head, row.query);
    columns.reference[e] = columns.sum[e] = 0.0f;
    columns.headroom[e] = 2.0f * kFloor;
  }
  Sums<D> sums;
  clear(sums);

  PlainRows plain = {k_sink, v_sink, k_recent, v_recent, first, last, kv_head, simdgroup};
  if (kPlainFirst) read_all_plain<D>(p, plain, sequence, share, mine, task, queries, columns, sums);
  further_tiles<D, B>(tiles, k, v, pass.first, pass.last, pass.stride, task.at);
  for (int e = 0; e < kLaneColumns; e++) {
    columns.from[e] = max(mine[e].coded, share.from);
    columns.to[e] = min(mine[e].exact, share.to);
  }
  read_codes<D, B>(p, k, v, pass, tiles, task, queries, columns, sums);
  if (!kPlainFirst) read_all_plain<D>(p, plain, sequence, share, mine, task, queries, columns, sums);

  Statistics found = {maxima, total, INT4KV_COLUMNS};
  leave_statistics(columns, found, simdgroup, task.at);
  join_simdgroups<D, B>(sums, found, simdgroup, task.at, scratch, rows);
  Output output = {v_rotation, v_centre, out, partial, statistics};
  JoinedRows joined = {found, scratch, rows, kv_head, block, split, simdgroup, lane};
  if (kSharing > 1 && p.splits > 1) write_joined<D, B, kSharing>(p, joined, sequence, output);
  else write_joined<D, B, 1>(p, joined, sequence, output);
}

INT4KV_ENTRY(attend_matrix_64, INT4KV_SIMDGROUPS, attend_matrix<64, tile_blocks(64)>)
INT4KV_ENTRY(attend_matrix_128, INT4KV_SIMDGROUPS, attend_matrix<128, tile_blocks(128)>)
INT4KV_ENTRY(attend_matrix_256, INT4KV_SIMDGROUPS, attend_matrix<256, tile_blocks(256)>)
