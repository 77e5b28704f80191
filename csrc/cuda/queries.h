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
  return {D + 12, D / 8};
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
  return {bytes, rows, largest / kLargestQuery + column_sum(probe), (256 * sum[0] + sum[2]) * twice_offset(coding) / 2};
}

#endif
