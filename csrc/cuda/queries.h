// Places of lanes in a tile, and the query rows as the first operand of the keys' products.
#ifndef INT4KV_CUDA_QUERIES_H
#define INT4KV_CUDA_QUERIES_H

#include "../metal/attend.h"
#include "level_bytes.h"

constant constexpr int kLaneColumns = 1;
constant constexpr int kTokensPerBlock = 2;
constant constexpr bool kPlainFirst = true;  // while the first tiles are on their way

struct Place {
  uint lane, column_, quarter;

  uint column(int) const {
    return column_;
  }
  // The token of a tile that score i of the lane's belongs to: two of each block.
  int token(int, int i) const {
    return 8 * (i / 2) + 2 * int(quarter) + i % 2;
  }
};

template <int D>
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
  float unit;    // what one step of the lane's column is worth
  float offset;  // what the offset of K's bytes makes of the column, taken off again
};

constant constexpr float kLargestQuery = 32512.0f;  // 127 * 256
constant constexpr float kLeastQuery = 1e-30f;      // a column of smaller numbers is one of zeros
constant constexpr float kRounding = 12582912.0f + 128.0f;  // 1.5 * 2^23: a sum with it has an integer in its lowest bits

// The larger magnitude, NaN if one is NaN.
inline float larger(float a, float b) {
  float found;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(found) : "f"(fabs(a)), "f"(fabs(b)));
  return found;
}

// Of all lanes' numbers that are not negative, or NaN: the bits of such have their order.
inline float simd_largest(float x) {
  return as_type<float>(simd_max(as_type<uint>(x)));
}

// Four channels in units of 1 / inverse, as 128 + the number, rounded.
inline uint4 rounded(float4 x, float inverse) {
  uint4 found;
  for (int i = 0; i < 4; i++) found[i] = as_type<uint>(fma(x[i], inverse, kRounding));
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

// Row n as high and low bytes, by the simdgroup that wrote it, a word a lane; what a step of it is worth, and what K's offset makes of it.
// The low bytes are of 128 + the number, less 128.
template <int D>
inline void lay_out_row(threadgroup float* row, threadgroup uint4* bytes, uint n, uint lane) {
  const Coding coding = {k_bits, codebook, 0.0f};
  const uint word = min(lane, uint(D / 8 - 1)), channel = channel_of(word, 0, 0), at = 32 * (word % (D / 32)) + 4 * n + word / (D / 32);
  float4 low = *(const threadgroup float4*)(row + channel), high = *(const threadgroup float4*)(row + channel + INT4KV_UNIT / 2);
  float largest = 0.0f;
  for (int i = 0; i < 4; i++) largest = larger(larger(largest, low[i]), high[i]);
  largest = simd_largest(largest);
  const float inverse = largest < kLeastQuery ? 0.0f : kLargestQuery * fast::reciprocal(largest);
  uint4 a = rounded(low, inverse), b = rounded(high, inverse);
  const uint2 above = word_bytes(a, b, 1, coding), below = word_bytes(a, b, 0, coding);
  int sum = 0;
  for (int i = 0; i < 4; i++) sum += int(a[i] + b[i] - 2 * as_type<uint>(kRounding));
  if (lane < D / 8) bytes[at] = {above.x, below.x ^ kByteTops, above.y, below.y ^ kByteTops};
  sum = simd_sum(lane < D / 8 ? sum : 0);
  const float unit = fma(largest, 1.0f / kLargestQuery, largest * 0.0f);  // NaN if there is one or an infinity
  if (lane == 0) *(threadgroup float2*)(row + D) = float2(unit, unit * float(sum * twice_offset(coding) / 2));
}

template <int D>
inline Queries<D> lay_out_queries(threadgroup float* rows, threadgroup float* scratch, uint simdgroup, Place at) {
  threadgroup uint4* bytes = (threadgroup uint4*)scratch;
  __syncwarp();
  for (uint n = simdgroup; n < INT4KV_COLUMNS; n += INT4KV_SIMDGROUPS) lay_out_row<D>(rows + n * row_layout<D>().stride, bytes, n, at.lane);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const threadgroup float* own = rows + at.column_ * row_layout<D>().stride + D;
  return {bytes, rows, own[0], own[1]};
}

#endif
