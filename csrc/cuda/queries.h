// Places of lanes in a tile, and the query rows as the first operand of the keys' products.
#ifndef INT4KV_CUDA_QUERIES_H
#define INT4KV_CUDA_QUERIES_H

#include "../metal/attend.h"
#include "level_bytes.h"

constant constexpr int kLaneColumns = 1;
constant constexpr int kTokensPerBlock = 2;

struct Place {
  uint lane, column_, quarter;

  uint column(int) const {
    return column_;
  }
  // The tile's token that score i of the lane's belongs to.
  int token(int, int i) const {
    return 8 * (i / 2) + 2 * int(quarter) + i % 2;
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
  return {D + 12, D};
}

// A block's scores of 8 tokens, high and low bytes of the query apart.
inline void multiply_keys(int (&s)[4], uint4 query, uint first, uint second) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
      : "r"(query.x), "r"(query.y), "r"(query.z), "r"(query.w), "r"(first), "r"(second));
}

// Q in threadgroup memory: of lane l, bytes[32 w + l] has those of word w of its quarter of its column, as mma wants them: high and
// low ones of the word's first register, then of the second.
template <int D>
struct Queries {
  const threadgroup uint4* bytes;
  const threadgroup float* rows;
  float unit;  // what one step of the lane's column is worth
  int offset;  // what the offset of K's bytes makes of the column, taken off again
};

constant constexpr float kLargestQuery = 32512.0f;  // 127 * 256
constant constexpr float kLeastQuery = 1e-30f;      // a column of smaller numbers is one of zeros

// The larger magnitude, NaN if one is NaN.
inline float larger(float a, float b) {
  float found;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(found) : "f"(fabs(a)), "f"(fabs(b)));
  return found;
}

// Four channels in units of 1 / inverse, as 128 + the number, rounded: a sum with 1.5 * 2^23 has it in its lowest bits.
inline uint4 rounded(float4 x, float inverse) {
  constexpr float shift = 12582912.0f + 128.0f;
  uint4 found;
  for (int i = 0; i < 4; i++) found[i] = as_type<uint>(fma(x[i], inverse, shift));
  return found;
}

// Byte `byte` of each.
inline uint bytes_of(uint4 x, uint byte) {
  uint selector = byte | (4 + byte) << 4;
  return permute(permute(x.x, x.y, selector), permute(x.z, x.w, selector), 0x5410);
}

// A word's eight channels as two registers, by the order that level_bytes gives to those of the keys.
inline uint2 word_bytes(uint4 low, uint4 high, uint byte, Coding coding) {
  uint first = bytes_of(low, byte), second = bytes_of(high, byte);  // channels c .. c + 3 and c + 16 .. c + 19
  if (!is_table(coding)) return {first, second};
  return {permute(first, second, 0x5140), permute(first, second, 0x7362)};
}

// The queries of the lane's column as high and low bytes. The low ones are of 128 + the number, less 128.
template <int D>
inline Queries<D> lay_out_queries(const threadgroup float* rows, threadgroup float* scratch, uint simdgroup, Place at) {
  const Coding coding = {k_bits, codebook, 0.0f};
  const threadgroup float4* column = (const threadgroup float4*)(rows + row_index(row_layout<D>(), at.column_, 0));
  threadgroup uint4* bytes = (threadgroup uint4*)scratch;
  float largest = 0.0f;
#pragma unroll
  for (uint i = 0; i < D / 16; i++) {
    float4 x = column[4 * i + at.quarter];
    largest = larger(larger(larger(larger(largest, x.x), x.y), x.z), x.w);
  }
  largest = larger(largest, simd_shuffle_xor(largest, ushort(1)));
  largest = larger(largest, simd_shuffle_xor(largest, ushort(2)));
  float inverse = largest < kLeastQuery ? 0.0f : kLargestQuery * fast::reciprocal(largest);
  for (uint w = simdgroup; w < D / 32; w += INT4KV_SIMDGROUPS) {
    uint channel = channel_of(at.quarter * (D / 32) + w, 0, 0);
    uint4 low = rounded(column[channel / 4], inverse), high = rounded(column[channel / 4 + 4], inverse);
    uint2 above = word_bytes(low, high, 1, coding), below = word_bytes(low, high, 0, coding);
    bytes[32 * w + at.lane] = {above.x, below.x ^ kByteTops, above.y, below.y ^ kByteTops};
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  int sum[4] = {};
#pragma unroll
  for (uint w = 0; w < D / 32; w++) multiply_keys(sum, bytes[32 * w + at.lane], 0x01010101u, 0x01010101u);
  float unit = fma(largest, 1.0f / kLargestQuery, largest * 0.0f);  // NaN if there is one or an infinity
  return {bytes, rows, unit, (256 * sum[0] + sum[2]) * twice_offset(coding) / 2};
}

#endif
