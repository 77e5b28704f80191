// Tiles of 8 * B tokens on the matrix units of NVIDIA's GPUs: what csrc/metal/tiles.h declares, as those want it (PTX ISA, mma).
//
//   S (16 x 8 tokens) += Q (16 x 32 channels, int8) * K^T (32 channels x 8 tokens, uint8)      head_dim / 32 times a block
//   O^T (16 channels x 8 columns) += V^T (16 channels x 16 tokens, fp16) * P^T (16 tokens x 8 columns, fp16)
//
// Integers for K: levels are bytes plus an offset, four in a register as they come out of a word, and the products are exact. A query
// row is 16 bits to its largest channel, in two rows of Q: 8 columns of high bytes, 8 of low ones.
// Lane 4 g + j, of a tile:   S    column g, tokens 2 B j .. 2 B j + 2 B - 1: their scales are one load
//                            K    token g of each block, a quarter of its channels (j)
//                            V    its tokens of S, an eighth of their channels (g)
//                            O^T  columns 2 j and 2 j + 1, the same channels
// So S becomes P^T where it lies, and nothing but the maxima ever goes between lanes.
#ifndef INT4KV_CUDA_TILES_H
#define INT4KV_CUDA_TILES_H

#include "../metal/attend.h"
#include "level_bytes.h"

constant constexpr int kLaneColumns = 1;
constant constexpr int kTokensPerBlock = 2;

// Threadgroup memory, in floats, for Q.
template <int D>
constexpr uint scratch_size() {
  return 4 * D;
}

struct Place {
  uint lane, column_, quarter;

  uint column(int) const {
    return column_;
  }
  int token(int blocks) const {
    return 2 * blocks * int(quarter);
  }
  // The token of the first block whose key this lane reads; the next block's is two further.
  int key(int blocks) const {
    return 2 * blocks * int(column_ / 2) + int(column_ % 2);
  }
};

inline Place place_of(uint lane) {
  return {lane, lane / 4, lane % 4};
}

inline float column_max(float x) {
  x = max(x, simd_shuffle_xor(x, ushort(1)));
  return max(x, simd_shuffle_xor(x, ushort(2)));
}

inline float column_sum(float x) {
  x += simd_shuffle_xor(x, ushort(1));
  return x + simd_shuffle_xor(x, ushort(2));
}

template <int D>
inline RowLayout row_layout() {
  return {D + 12, D / 8};
}

// A block's scores of 8 tokens, high and low bytes of the query apart.
inline void multiply_keys(int (&s)[4], uint4 query, uint first, uint second) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
      : "r"(query.x), "r"(query.y), "r"(query.z), "r"(query.w), "r"(first), "r"(second));
}

// Q in threadgroup memory: of lane l, pairs[32 w + l] has the bytes of word w of its quarter of its column, as mma wants them: high and
// low ones of the word's first register, then of the second.
template <int D>
struct Queries {
  const threadgroup uint4* bytes;
  float unit;  // what one step of the lane's column is worth
  int offset;  // what the offset of K's bytes makes of the column, taken off again
};

constant constexpr float kLargestQuery = 32512.0f;  // 127 * 256

// Four channels as high and low bytes.
template <int D>
inline uint2 query_bytes(const threadgroup float* rows, uint word, uint i, Coding coding, float inverse, Place at) {
  uint2 found = {0, 0};
#pragma unroll
  for (uint byte = 0; byte < 4; byte++) {
    uint nibble = nibble_of(coding, i, byte), channel = channel_of(word, nibble % kPairs, nibble / kPairs);
    int x = __float2int_rn(rows[row_index(row_layout<D>(), at.column_, channel)] * inverse), above = (x + 128) >> 8;
    found.x |= uint(above & 255) << (8 * byte);
    found.y |= uint((x - 256 * above) & 255) << (8 * byte);
  }
  return found;
}

template <int D>
inline Queries<D> lay_out_queries(const threadgroup float* rows, threadgroup float* scratch, uint simdgroup, Place at) {
  const Coding coding = {k_bits, codebook, 0.0f};
  threadgroup uint4* bytes = (threadgroup uint4*)scratch;
  float largest = 0.0f, probe = 0.0f;
#pragma unroll
  for (int i = 0; i < D / 4; i++) {
    float x = rows[row_index(row_layout<D>(), at.column_, at.quarter * (D / 4) + i)];
    largest = max(largest, fabs(x));
    probe = fma(x, 0.0f, probe);  // NaN if there is one or an infinity
  }
  largest = column_max(largest);
  float inverse = largest == 0.0f ? 0.0f : kLargestQuery / largest;
  for (uint w = simdgroup; w < D / 32; w += INT4KV_SIMDGROUPS) {
    uint2 first = query_bytes<D>(rows, at.quarter * (D / 32) + w, 0, coding, inverse, at);
    uint2 second = query_bytes<D>(rows, at.quarter * (D / 32) + w, 1, coding, inverse, at);
    bytes[32 * w + at.lane] = {first.x, first.y, second.x, second.y};
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  int sum[4] = {};
  for (uint w = 0; w < D / 32; w++) multiply_keys(sum, bytes[32 * w + at.lane], 0x01010101u, 0x01010101u);
  return {bytes, largest / kLargestQuery + column_sum(probe), (256 * sum[0] + sum[2]) * twice_offset(coding) / 2};
}

template <int D, int B>
struct KeyWords {
  PlaneWords<D / 32> block[B];
};

template <int D, int B>
struct ValueWords {
  PlaneWords<D / 64> token[2 * B];
};

// `together`: the tile's rows lie one after the other (Source::is_together); else tokens from `last` on repeat the one before it.
template <int D, int B>
inline void load_keys(const Source& source, int tile, int last, bool together, Place at, KeyWords<D, B>& words) {
  uint bits = source.coding.bits, first = at.quarter * (D / 32);
  int token = tile + at.key(B);
  if (together) {
    const uchar* row = source.aligned_row(token, D * bits / 8);
#pragma unroll
    for (int b = 0; b < B; b++) load_words<D / 32>(row + 2 * b * (D * bits / 8), bits, D, first, true, words.block[b]);
  } else {
#pragma unroll
    for (int b = 0; b < B; b++) load_words<D / 32>(source.row(min(token + 2 * b, last - 1)), bits, D, first, true, words.block[b]);
  }
}

template <int D, int B>
inline void load_values(const Source& source, int tile, int last, bool together, Place at, ValueWords<D, B>& words) {
  uint bits = source.coding.bits, first = at.column_ * (D / 64);
  int token = tile + at.token(B);
  if (together) {
    const uchar* row = source.aligned_row(token, D * bits / 8);
#pragma unroll
    for (int i = 0; i < 2 * B; i++) load_words<D / 64>(row + i * (D * bits / 8), bits, D, first, true, words.token[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 2 * B; i++) load_words<D / 64>(source.row(min(token + i, last - 1)), bits, D, first, true, words.token[i]);
  }
}

// Asks for a tile's rows and scales ahead of load_keys and load_values: registers hold one tile, memory is further away than that.
template <int D, int B>
inline void request_tile(const Source& source, int tile, Place at) {
  if (!source.is_together(tile, 8 * B)) return;
  const uint lines = (8 * B * D * source.coding.bits / 8 + 127) / 128;
  const uchar* first = source.aligned_row(tile, D * source.coding.bits / 8);
#pragma unroll
  for (uint i = 0; i < lines; i += INT4KV_SIMD) {
    if (i + at.lane < lines) asm volatile("prefetch.global.L2 [%0];" : : "l"(first + 128 * (i + at.lane)));
  }
  if (at.lane == 0) asm volatile("prefetch.global.L2 [%0];" : : "l"(source.aligned_scale(tile)));
}

// Of a lane's N tokens of a tile, in pairs as they were loaded: taken apart where they are used, which is when they have arrived.
template <int N>
struct alignas(2 * N) Scales {
  half2 pair[N / 2];
};

template <int N>
inline float scale_of(const Scales<N>& scales, int i) {
  half2 pair = scales.pair[i / 2];
  return float(i % 2 ? pair.y : pair.x);
}

template <int N>
inline void set_scale(Scales<N>& scales, int i, float x) {
  half2& pair = scales.pair[i / 2];
  pair = i % 2 ? half2(pair.x, half(x)) : half2(half(x), pair.y);
}

template <int D, int B>
inline void load_scales(const Source& source, int tile, int last, bool together, Place at, Scales<2 * B>& scales) {
  int token = tile + at.token(B);
  if (together) {
    scales = *(const Scales<2 * B>*)(source.aligned_scale(token));
  } else {
#pragma unroll
    for (int i = 0; i < 2 * B; i++) set_scale(scales, i, source.scale(min(token + i, last - 1), 0));
  }
}

// score[i]: of the lane's column and token i, before the scale of the token.
template <int D, int B>
inline void score_codes(const KeyWords<D, B>& words, Coding coding, const Queries<D>& queries, Place at, float* score) {
  int s[B][4];
#pragma unroll
  for (int b = 0; b < B; b++) s[b][0] = s[b][1] = 0, s[b][2] = s[b][3] = -queries.offset;
#pragma unroll
  for (uint w = 0; w < D / 32; w++) {
    uint4 query = queries.bytes[32 * w + at.lane];
#pragma unroll
    for (int b = 0; b < B; b++) {
      CodeWord code = code_word<D / 32>(words.block[b], coding.bits, at.quarter * (D / 32), w);
      multiply_keys(s[b], query, level_bytes(code, coding, 0), level_bytes(code, coding, 1));
    }
  }
#pragma unroll
  for (int b = 0; b < B; b++) {
    score[2 * b] = float(256 * s[b][0] + s[b][2]) * queries.unit;
    score[2 * b + 1] = float(256 * s[b][1] + s[b][3]) * queries.unit;
  }
}

// O^T, head_dim by 8 columns: o[2 f], o[2 f + 1] are of channel 2 f of the lane's eighth, the next two of the channel after it. In
// units of a power of two that keeps V's scales within fp16 however large or small the values are.
template <int D>
struct Sums {
  float o[D / 16][4];
  float unit, inverse;
};

template <int D>
inline void clear(Sums<D>& sums) {
  sums.unit = sums.inverse = 0.0f;
#pragma unroll
  for (int f = 0; f < D / 16; f++) {
#pragma unroll
    for (int i = 0; i < 4; i++) sums.o[f][i] = 0.0f;
  }
}

constant constexpr float kLeastUnit = 1.0f / 32768.0f;  // its inverse is an fp16 number

template <int N>
inline float largest_scale(const Scales<N>& scale) {
  half2 found = scale.pair[0];
#pragma unroll
  for (int i = 1; i < N / 2; i++) found = largest_pair(found, scale.pair[i]);
  return max(float(found.x), float(found.y));
}

// Whether a scale is too large for the sums' unit.
template <int D, int N>
inline bool outgrows(const Sums<D>& sums, const Scales<N>& scale) {
  return largest_scale<N>(scale) > sums.unit;
}

// The sums of the column times by[0], and their unit as large as the scales.
template <int D, int N>
inline void rescale(Sums<D>& sums, const float* by, const Scales<N>& scale, Place at) {
  float found = max(simd_max(largest_scale<N>(scale)), kLeastUnit);
  float unit = max(sums.unit, as_type<float>((as_type<uint>(found) & INT4KV_FP32_INF_BITS) + 0x00800000u));
  sums.inverse = as_type<float>(0x7f000000u - as_type<uint>(unit));
  float shrink = sums.unit * sums.inverse;
  sums.unit = unit;
  float factor[2] = {simd_shuffle(by[0], ushort(8 * at.quarter)) * shrink, simd_shuffle(by[0], ushort(8 * at.quarter + 4)) * shrink};
#pragma unroll
  for (int f = 0; f < D / 16; f++) {
#pragma unroll
    for (int i = 0; i < 4; i++) sums.o[f][i] *= factor[i % 2];
  }
}

inline void multiply_values(float (&o)[4], half2 first, half2 second, half2 third, half2 fourth, const half2* weight) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(o[0]), "+f"(o[1]), "+f"(o[2]), "+f"(o[3])
      : "r"(as_type<uint>(first)), "r"(as_type<uint>(second)), "r"(as_type<uint>(third)), "r"(as_type<uint>(fourth)),
        "r"(as_type<uint>(weight[0])), "r"(as_type<uint>(weight[1])));
}

// Two weights times the scales of their tokens, in the sums' unit.
inline half2 weight_pair(const float* weight, half2 scale, half2 inverse) {
  return half_pair(weight[0], weight[1]) * (scale * inverse);
}

// Nibbles 4 i .. 4 i + 3 of two tokens' words, for level_pairs.
inline CodeWord zip(CodeWord a, CodeWord b, uint i) {
  uint selector = i == 0 ? 0x5140 : 0x7362;
  return {permute(a.low, b.low, selector), permute(a.high, b.high, selector)};
}

template <int D, int B>
inline void add_codes(
    const ValueWords<D, B>& words, Coding coding, const float* weight, const Scales<2 * B>& scale, Place at, float*, Sums<D>& sums) {
  const half2 inverse = half_pair(sums.inverse, sums.inverse);
#pragma unroll
  for (int s = 0; s < B / 2; s++) {
    half2 weights[2];
    for (int i = 0; i < 2; i++) weights[i] = weight_pair(weight + 4 * s + 2 * i, scale.pair[2 * s + i], inverse);
#pragma unroll
    for (uint w = 0; w < D / 64; w++) {
      CodeWord code[4];
#pragma unroll
      for (int i = 0; i < 4; i++) code[i] = code_word<D / 64>(words.token[4 * s + i], coding.bits, at.column_ * (D / 64), w);
#pragma unroll
      for (uint i = 0; i < 2; i++) {
        half2 first[4], second[4];
        level_pairs(zip(code[0], code[1], i), coding, first);
        level_pairs(zip(code[2], code[3], i), coding, second);
#pragma unroll
        for (uint f = 0; f < 2; f++) {
          multiply_values(sums.o[4 * w + 2 * i + f], first[2 * f], first[2 * f + 1], second[2 * f], second[2 * f + 1], weights);
        }
      }
    }
  }
}

// Channel c of the lane's eighth, in the order of its words' nibbles: the even ones of a word follow each other, so do the odd ones.
template <int D>
inline uint value_channel(Place at, uint c) {
  return channel_of(at.column_ * (D / 64) + c / 8, c % kPairs, c / kPairs % 2);
}

// Plain rows in place of codes, a block at a time, in fp32. A lane takes token g and a quarter of its channels, for all columns.
template <int D>
inline void score_plain(
    const Source& source, int tile, int last, const Queries<D>&, Place at, const threadgroup float* rows, float* score) {
  const uchar* row = source.row(min(tile + int(at.column_), last - 1));
  float sum[INT4KV_COLUMNS] = {};
  constexpr uint kAtOnce = D < 128 ? 16 : 32;
#pragma unroll 1
  for (uint first = at.quarter * (D / 4); first < (at.quarter + 1) * (D / 4); first += kAtOnce) {
    float x[kAtOnce];
    source.channels<kAtOnce>(row, first, x);
#pragma unroll
    for (uint c = 0; c < kAtOnce; c++) {
#pragma unroll
      for (uint n = 0; n < INT4KV_COLUMNS; n++) sum[n] = fma(rows[row_index(row_layout<D>(), n, first + c)], x[c], sum[n]);
    }
  }
#pragma unroll
  for (uint n = 0; n < INT4KV_COLUMNS; n++) {
    sum[n] = column_sum(sum[n]);
    for (int i = 0; i < kTokensPerBlock; i++) {
      float found = simd_shuffle(sum[n], ushort(4 * (2 * at.quarter + i)));
      if (n == at.column_) score[i] = found;
    }
  }
}

// O^T gets the tokens of a block one after the other; a weight comes from the lane that has its score.
template <int D>
inline void add_plain(const Source& source, int tile, int last, const float* weight, Place at, float*, Sums<D>& sums) {
  constexpr int kAtOnce = D > 128 ? 2 : 4;
#pragma unroll 1
  for (int t = 0; t < 8; t += kAtOnce) {
    float x[kAtOnce][D / 8], factor[kAtOnce][2];
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      const uchar* row = source.row(min(tile + t + i, last - 1));
#pragma unroll
      for (uint word = 0; word < D / 64; word++) {
        source.channels<4>(row, value_channel<D>(at, 8 * word), x[i] + 8 * word);
        source.channels<4>(row, value_channel<D>(at, 8 * word + 1), x[i] + 8 * word + 4);
      }
      for (int e = 0; e < 2; e++) factor[i][e] = simd_shuffle(weight[i % 2], ushort(4 * (2 * at.quarter + e) + (t + i) / 2)) * sums.inverse;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
#pragma unroll
      for (uint c = 0; c < D / 8; c++) {
        for (int e = 0; e < 2; e++) {
          float& o = sums.o[c / 2][2 * (c % 2) + e];
          if (factor[i][e] != 0.0f) o = fma(factor[i][e], x[i][c / 8 * 8 + c % 2 * 4 + c % 8 / 2], o);  // what is not seen may be NaN
        }
      }
    }
  }
}

// The simdgroup's sums into rows, or onto those that are there, weighed as `found` says.
template <int D>
inline void join_sums(
    const Sums<D>& sums, const Statistics& found, uint simdgroup, bool first, Place at, threadgroup float* rows) {
#pragma unroll
  for (uint e = 0; e < 2; e++) {
    uint column = 2 * at.quarter + e;
    float weight = fast::exp2(found.maxima[simdgroup * INT4KV_COLUMNS + column] - found.maximum(column)) * sums.unit;
#pragma unroll
    for (uint c = 0; c < D / 8; c++) {
      float* to = rows + row_index(row_layout<D>(), column, value_channel<D>(at, c));
      float part = weight * sums.o[c / 2][2 * (c % 2) + e];
      *to = first ? part : *to + part;
    }
  }
}

#endif
