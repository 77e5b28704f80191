// Tiles of 8 * B tokens of codes as fragments of simdgroup_matrix: the two products of attention over them.
// csrc/cuda/tiles.h is the same for the matrix units of NVIDIA's GPUs; attend_matrix.metal knows only what both declare.
//
//   S (8 tokens x 8 columns)   += K (8 tokens x 8 channels) * Q (8 channels x 8 columns)      head_dim / 8 times a block
//   O (8 columns x 8 channels) += P^T (8 columns x 8 tokens) * V (8 tokens x 8 channels)
//
// A fragment row r is the tokens B r .. B r + B - 1 of the tile, one a block: a lane's tokens lie together, and so do their scales.
// The four lanes of a row own a quarter of its channels each: the same contiguous words of K and of V, decoded straight into
// fragments, so no code is ever moved between lanes. Fragment 4 w + t is pair t (codes.h) of word w of each lane; q and o follow
// that order, and only threadgroup memory knows channels. P is transposed through threadgroup memory, once a tile.
#ifndef INT4KV_METAL_TILES_H
#define INT4KV_METAL_TILES_H

#include "attend.h"
#include "fragments.h"

constant constexpr int kLaneColumns = 2;    // query rows whose scores a lane holds
constant constexpr int kTokensPerBlock = 1;  // tokens whose scores a lane holds, for each of these rows
constant constexpr bool kPlainFirst = false; // whether plain rows are read before the codes

// What plain rows take, in tokens of codes (share_of).
template <int D, int B>
constexpr int plain_cost() {
  return 0;
}

// Blocks of 8 tokens of a tile.
constexpr int tile_blocks(int head_dim) {
  return head_dim < 256 ? 4 : 2;
}

// A lane's place in the fragments: it holds (row, column) and (row, column + 1).
struct Place {
  uint lane, row, quarter;

  uint column(int e) const {
    return 2 * quarter + uint(e);
  }
  // The token of a tile of so many blocks that score i of a column belongs to.
  int token(int blocks, int i) const {
    return blocks * int(row) + i;
  }
};

template <int D>
inline Place place_of(uint lane) {
  return {lane, fragment_row(lane), fragment_column(lane) / 2};
}

template <int D>
inline RowLayout row_layout() {
  return {D + 12, D / 8};
}

// Where a simdgroup transposes its weights: column c's of block b begin at c * stride + 8 b. Four floats keep the banks apart.
constant constexpr uint kWeightStride = 8 * 4 + 4;

// Threadgroup memory for that, in floats, and the part of a simdgroup.
template <int D, int B>
constexpr uint scratch_size() {
  return INT4KV_SIMDGROUPS * INT4KV_COLUMNS * kWeightStride;
}

template <int D, int B>
inline threadgroup float* scratch_of(threadgroup float* scratch, uint simdgroup) {
  return scratch + simdgroup * INT4KV_COLUMNS * kWeightStride;
}

// The queries of a block as fragments, in threadgroup memory: the pair of lane l of fragment f in pairs[32 f + l].
template <int D>
struct Queries {
  const threadgroup float2* pairs;

  Fragment at(uint f, uint lane) const {
    float2 pair = pairs[32 * f + lane];
    return fragment_of(pair.x, pair.y);
  }
};

// From rows to fragments in the same memory. Every lane takes what it wrote itself, in registers until all have theirs.
template <int D>
inline Queries<D> lay_out_queries(threadgroup float* rows, threadgroup float*, uint simdgroup, Place at) {
  float x[INT4KV_COLUMNS / INT4KV_SIMDGROUPS][D / INT4KV_UNIT];
  for (uint n = 0; n < INT4KV_COLUMNS / INT4KV_SIMDGROUPS; n++) {
    for (uint u = 0; u < D / INT4KV_UNIT; u++) {
      x[n][u] = rows[row_index(row_layout<D>(), simdgroup + n * INT4KV_SIMDGROUPS, INT4KV_UNIT * u + at.lane)];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint n = 0; n < INT4KV_COLUMNS / INT4KV_SIMDGROUPS; n++) {
    uint column = simdgroup + n * INT4KV_SIMDGROUPS;
    for (uint u = 0; u < D / INT4KV_UNIT; u++) {
      uint word = kWordsPerUnit * u + at.lane % 16 / 4, t = (at.lane & 1) * 2 + at.lane / 16, e = (at.lane >> 1) & 1;
      uint index = word % (D / 32) * kPairs + t, row = word / (D / 32) * 2 + e;
      rows[(32 * index + fragment_lane(row, column & 6)) * 2 + (column & 1)] = x[n][u];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return {(const threadgroup float2*)rows};
}

// The words of this lane's quarter of B tokens, K's or V's alike.
template <int D, int B>
struct TileWords {
  PlaneWords<D / 32> block[B];
};

// `together`: the tile's rows lie one after the other (Source::is_together); else tokens from `last` on repeat the one before it.
template <int D, int B>
inline void load_words_of(
    thread const Source& source, int tile, int last, bool together, Place at, thread TileWords<D, B>& words) {
  uint bits = source.coding.bits, first = at.quarter * (D / 32);
  int token = tile + at.token(B, 0);
  if (together) {
    const device uchar* row = source.row(token);
    for (int b = 0; b < B; b++) load_words<D / 32>(row + uint(b) * (D * bits / 8), bits, D, first, true, words.block[b]);
  } else {
    for (int b = 0; b < B; b++) load_words<D / 32>(source.row(min(token + b, last - 1)), bits, D, first, true, words.block[b]);
  }
}

// Of a lane's N tokens of a tile.
template <int N>
struct Scales {
  half of[N];
};

template <int N>
inline float scale_of(thread const Scales<N>& scales, int i) {
  return float(scales.of[i]);
}

template <int N>
inline void set_scale(thread Scales<N>& scales, int i, float x) {
  scales.of[i] = half(x);
}

template <int D, int B>
inline void load_scales(thread const Source& source, int tile, int last, bool together, Place at, thread Scales<B>& scales) {
  int token = tile + at.token(B, 0);
  if (together && B == 4) {
    half4 four = *(const device half4*)(source.aligned_scale(token));
    for (int b = 0; b < B; b++) scales.of[b] = four[b];
  } else if (together && B == 2) {
    half2 two = *(const device half2*)(source.aligned_scale(token));
    for (int b = 0; b < B; b++) scales.of[b] = two[b];
  } else {
    for (int b = 0; b < B; b++) scales.of[b] = half(source.scale(min(token + b, last - 1), 0));
  }
}

// The tile at hand: its keys are asked for before the values of the one before it are used.
template <int D, int B>
struct Tiles {
  TileWords<D, B> keys, values;
  bool together;
};

template <int D, int B>
inline void load_keys(thread Tiles<D, B>& tiles, thread const Source& k, thread const Source& v, int tile, int last, Place at) {
  tiles.together = simd_all(k.is_together(tile, 8 * B) && v.is_together(tile, 8 * B));
  load_words_of<D, B>(k, tile, last, tiles.together, at, tiles.keys);
}

// Those of a pass, before any is asked for.
template <int D, int B>
inline Tiles<D, B> tiles_of(thread const Source&, thread const Source&, int, int, Place, threadgroup float*) {
  return {};
}

// Asks for what is first needed of a pass.
template <int D, int B>
inline void first_tile(thread Tiles<D, B>& tiles, thread const Source& k, thread const Source& v, int first, int last, Place at) {
  if (first < last) load_keys<D, B>(tiles, k, v, first, last, at);
}

// And for what comes after it: nothing, there are no registers for more.
template <int D, int B>
inline void further_tiles(thread Tiles<D, B>&, thread const Source&, thread const Source&, int, int, int, Place) {}

// What else is needed of the tile at hand.
template <int D, int B>
inline void open_tile(
    thread Tiles<D, B>& tiles, thread const Source& k, thread const Source& v, int tile, int last, Place at, thread Scales<B>& k_scale,
    thread Scales<B>& v_scale) {
  load_words_of<D, B>(v, tile, last, tiles.together, at, tiles.values);
  load_scales<D, B>(k, tile, last, tiles.together, at, k_scale);
  load_scales<D, B>(v, tile, last, tiles.together, at, v_scale);
}

// The keys of tile have been used: asks for the next.
template <int D, int B>
inline void next_keys(thread Tiles<D, B>& tiles, thread const Source& k, thread const Source& v, int tile, int last, int stride, Place at) {
  load_keys<D, B>(tiles, k, v, tile + stride, last, at);
}

// So have the values.
template <int D, int B>
inline void next_tile(thread Tiles<D, B>&, thread const Source&, thread const Source&, int, int, int, Place) {}

// score[e * B + b]: of column e and token b, before the scale of the token.
template <int D, int B>
inline void score_codes(
    thread const Tiles<D, B>& tiles, Coding coding, thread const Queries<D>& queries, Place at, thread float* score) {
  Fragment sum[B];
  for (int b = 0; b < B; b++) sum[b] = fragment_of(0.0f, 0.0f);
  for (uint w = 0; w < D / 32; w++) {
    CodeWord code[B];
    for (int b = 0; b < B; b++) code[b] = code_word<D / 32>(tiles.keys.block[b], coding.bits, at.quarter * (D / 32), w);
    for (uint t = 0; t < kPairs; t++) {
      Fragment query = queries.at(kPairs * w + t, at.lane);
      for (int b = 0; b < B; b++) {
        float2 level = level_pair(code[b], t, coding);
        Fragment key = fragment_of(level.x, level.y);
        simdgroup_multiply_accumulate(sum[b], key, query, sum[b]);
      }
    }
  }
  for (int b = 0; b < B; b++) {
    score[b] = sum[b].thread_elements()[0];
    score[B + b] = sum[b].thread_elements()[1];
  }
}

// What a simdgroup has summed up: O, 8 columns by head_dim.
template <int D>
struct Sums {
  Fragment o[D / 8];
};

template <int D>
inline void clear(thread Sums<D>& sums) {
  for (int f = 0; f < D / 8; f++) sums.o[f] = fragment_of(0.0f, 0.0f);
}

// Whether a scale is too large for the sums: of fp32, never.
template <int D, int N>
inline bool outgrows(thread const Sums<D>&, thread const Scales<N>&) {
  return false;
}

// The sums of column e times by[e], if there are any; a lane's row of O is another column than those of its scores.
template <int D, int N>
inline void rescale(thread Sums<D>& sums, thread const float* by, bool filled, thread const Scales<N>&, Place at) {
  if (!filled) return;
  ushort from = ushort(fragment_lane(0, at.row & 6));
  float even = simd_shuffle(by[0], from), odd = simd_shuffle(by[1], from), factor = at.row & 1 ? odd : even;
  for (int f = 0; f < D / 8; f++) {
    sums.o[f].thread_elements()[0] *= factor;
    sums.o[f].thread_elements()[1] *= factor;
  }
}

template <int B>
inline void transpose_weights(thread const float* weight, thread const Scales<B>& scale, Place at, threadgroup float* weights) {
  simdgroup_barrier(mem_flags::mem_threadgroup);  // the weights of the tile before have been read
  for (int e = 0; e < kLaneColumns; e++) {
    for (int b = 0; b < B; b++) {
      float x = weight[e * B + b];
      weights[at.column(e) * kWeightStride + 8 * b + at.row] = x == 0.0f ? 0.0f : x * scale_of(scale, b);  // what is not seen may be NaN
    }
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
}

inline Fragment weight_fragment(const threadgroup float* weights, int b, Place at) {
  float2 pair = *(const threadgroup float2*)(weights + at.row * kWeightStride + 8 * b + at.column(0));
  return fragment_of(pair.x, pair.y);
}

// O += P^T V, weight[e * B + b] being P of column e and token b. `weights`: this simdgroup's part of the scratch.
template <int D, int B>
inline void add_codes(
    thread const Tiles<D, B>& tiles, Coding coding, thread const float* weight, thread const Scales<B>& scales, Place at,
    threadgroup float* weights, thread Sums<D>& sums) {
  transpose_weights<B>(weight, scales, at, weights);
  for (int b = 0; b < B; b++) {
    Fragment column_weights = weight_fragment(weights, b, at);
    for (uint w = 0; w < D / 32; w++) {
      CodeWord code = code_word<D / 32>(tiles.values.block[b], coding.bits, at.quarter * (D / 32), w);
      for (uint t = 0; t < kPairs; t++) {
        float2 level = level_pair(code, t, coding);
        Fragment value = fragment_of(level.x, level.y);
        simdgroup_multiply_accumulate(sums.o[kPairs * w + t], column_weights, value, sums.o[kPairs * w + t]);
      }
    }
  }
}

// Before codes are added, and after: there is nothing to do in fp32.
template <int D>
inline void begin_codes(Coding, Place, thread Sums<D>&) {}
template <int D>
inline void settle(Coding, thread Sums<D>&) {}

// The simdgroup's sums into rows, or onto those that are there, weighed as `found` says.
template <int D>
inline void join_sums(
    thread Sums<D>& sums, thread const Statistics& found, uint simdgroup, bool first, Place at, threadgroup float* rows) {
  float weight = fast::exp2(found.maxima[simdgroup * INT4KV_COLUMNS + at.row] - found.maximum(at.row));
  for (uint f = 0; f < D / 8; f++) {
    for (uint e = 0; e < 2; e++) {
      uint channel = channel_of(at.quarter * (D / 32) + f / kPairs, f % kPairs, e);
      threadgroup float* to = rows + row_index(row_layout<D>(), at.row, channel);
      float part = weight * sums.o[f].thread_elements()[e];
      *to = first ? part : *to + part;
    }
  }
}

// Joins the simdgroups in turns into rows.
template <int D, int B>
inline void join_simdgroups(
    thread Sums<D>& sums, thread const Statistics& found, uint simdgroup, Place at, threadgroup float*, threadgroup float* rows) {
  for (uint turn = 0; turn < INT4KV_SIMDGROUPS; turn++) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (turn == simdgroup) join_sums<D>(sums, found, simdgroup, turn == 0, at, rows);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// U units of row n of what they came to, from unit `first` on.
template <int D, int B, uint U>
inline Joined joined_row(
    thread const Statistics& found, uint n, uint first, uint lane, const threadgroup float*, const threadgroup float* rows) {
  Joined joined = {found.maximum(n), 0.0f, {}};
  joined.sum = found.sum(n, joined.maximum);
  for (uint u = 0; u < U; u++) joined.x[u] = rows[row_index(row_layout<D>(), n, INT4KV_UNIT * (first + u) + lane)];
  return joined;
}

#endif
