// Plain rows in place of codes, a block of 8 tokens at a time: the first and the newest tokens. As exact as fp32 where it matters: the
// query, and the weights, are two fp16 numbers each, of what the first one leaves; fp16 rows are taken as they are.
//
//   S (16 x 8 tokens) += Q (8 columns, 8 of what is left; 16 channels) * K^T (16 channels x 8 tokens)
//   O^T (16 channels x 8 columns) += V^T (16 channels x 8 tokens) * P^T (8 tokens x 8 columns)           twice
//
// Rows of other types or that 16 bytes cannot be loaded from, and values that are not finite, take a slow way in fp32.
#ifndef INT4KV_CUDA_EXACT_ROWS_H
#define INT4KV_CUDA_EXACT_ROWS_H

#include "values.h"

inline bool are_aligned_halves(const Source& source) {
  return source.type == INT4KV_FLOAT16 && source.step == 1 && ((ulong(source.codes) | ulong(source.token_bytes)) & 15) == 0;
}

struct TwoHalves {
  half2 first, rest;
};

inline TwoHalves two_halves(float x, float y) {
  half2 first = half_pair(x, y);
  return {first, half_pair(x - float(first.x), y - float(first.y))};
}

// Scores of fp16 rows. A product takes channels 4 j .. 4 j + 3 of the lane's 8 as its columns 2 j, 2 j + 1, 2 j + 8 and 2 j + 9.
template <int D>
inline void score_halves(const Source& source, int tile, int last, const Queries<D>& queries, Place at, float* score) {
  const uchar* row = source.row(min(tile + int(at.column_), last - 1));
  const threadgroup float4* query = (const threadgroup float4*)(queries.rows + row_index(row_layout<D>(), at.column_, 0));
  uint4 key[D / 32];
#pragma unroll
  for (uint i = 0; i < D / 32; i++) key[i] = *(const uint4*)(row + 64 * i + 16 * at.quarter);
  float unit = max(as_type<float>(as_type<uint>(queries.unit) & INT4KV_FP32_INF_BITS), 1e-30f), inverse = 1.0f / unit, s[4] = {};
#pragma unroll
  for (uint i = 0; i < D / 32; i++) {
#pragma unroll
    for (uint h = 0; h < 2; h++) {
      float4 x = query[8 * i + 2 * at.quarter + h];
      TwoHalves a = two_halves(x.x * inverse, x.y * inverse), b = two_halves(x.z * inverse, x.w * inverse);
      half2 keys[2] = {as_type<half2>(key[i][2 * h]), as_type<half2>(key[i][2 * h + 1])};
      multiply_values(s, as_type<uint>(a.first), as_type<uint>(a.rest), as_type<uint>(b.first), as_type<uint>(b.rest), keys);
    }
  }
  score[0] = (s[0] + s[2]) * unit;
  score[1] = (s[1] + s[3]) * unit;
}

// In fp32, of any type. A lane takes token g and a quarter of its channels, for all columns.
template <int D>
inline void score_slowly(const Source& source, int tile, int last, const Queries<D>& queries, Place at, float* score) {
  const uchar* row = source.row(min(tile + int(at.column_), last - 1));
  float sum[INT4KV_COLUMNS] = {};
#pragma unroll 1
  for (uint c = at.quarter * (D / 4); c < (at.quarter + 1) * (D / 4); c += 4) {
    float x[4];
    source.channels<4>(row, c, x);
#pragma unroll
    for (uint i = 0; i < 4; i++) {
#pragma unroll
      for (uint n = 0; n < INT4KV_COLUMNS; n++) sum[n] = fma(queries.rows[row_index(row_layout<D>(), n, c + i)], x[i], sum[n]);
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

template <int D>
inline void score_plain(const Source& source, int tile, int last, const Queries<D>& queries, Place at, float* score) {
  if (are_aligned_halves(source)) score_halves<D>(source, tile, last, queries, at, score);
  else score_slowly<D>(source, tile, last, queries, at, score);
}

inline void multiply_halves(float (&o)[4], uint first, uint second, half2 weight) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(o[0]), "+f"(o[1]), "+f"(o[2]), "+f"(o[3])
      : "r"(first), "r"(second), "r"(as_type<uint>(weight)));
}

// False, and nothing added, when a value is not finite: a product would carry it to the columns that do not see its token.
template <int D>
inline bool add_halves(const Source& source, int tile, int last, const float* weight, Place at, Sums<D>& sums) {
  uint value[2][D / 16];
  const half2 zero = as_type<half2>(0u);
  half2 probe = zero;
#pragma unroll
  for (int e = 0; e < 2; e++) {
    const uchar* row = source.row(min(tile + at.token(1, e), last - 1));
#pragma unroll
    for (int i = 0; i < D / 16; i++) value[e][i] = *(const uint*)(row + 32 * i + 4 * at.column_);
  }
#pragma unroll
  for (int i = 0; i < D / 8; i++) probe = fma(as_type<half2>(value[i % 2][i / 2]), zero, probe);
  if (simd_any(as_type<uint>(probe) != 0)) return false;
  const float inverse = float(sums.inverse.x);
  TwoHalves weights = two_halves(weight[0] * inverse, weight[1] * inverse);
#pragma unroll
  for (int i = 0; i < D / 16; i++) {
    const uint *a = &value[0][i / 2 * 2], *b = &value[1][i / 2 * 2];
    uint first = permute(a[0], b[0], i % 2 ? 0x7632 : 0x5410), second = permute(a[1], b[1], i % 2 ? 0x7632 : 0x5410);
    multiply_halves(sums.o[i], first, second, weights.first);
    multiply_halves(sums.o[i], first, second, weights.rest);
  }
  return true;
}

// One token after the other; a weight comes from the lane that has its score.
template <int D>
inline void add_slowly(const Source& source, int tile, int last, const float* weight, Place at, Sums<D>& sums) {
#pragma unroll 1
  for (int t = 0; t < 8; t++) {
    const uchar* row = source.row(min(tile + t, last - 1));
    float factor[2];
    for (int e = 0; e < 2; e++) {
      ushort lane = ushort(4 * (2 * at.quarter + e) + t / 2);
      factor[e] = (t % 2 ? simd_shuffle(weight[1], lane) : simd_shuffle(weight[0], lane)) * float(sums.inverse.x);
    }
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
      float x = source.channel(row, 32 * (i / 4) + 16 * (i % 2) + 2 * at.column_ + i / 2 % 2);
      for (int e = 0; e < 2; e++) {
        float& o = sums.o[i / 2][2 * (i % 2) + e];
        if (factor[e] != 0.0f) o = fma(factor[e], x, o);  // what is not seen may be NaN
      }
    }
  }
}

template <int D>
inline void add_plain(const Source& source, int tile, int last, const float* weight, Place at, float*, Sums<D>& sums) {
  if (are_aligned_halves(source) && add_halves<D>(source, tile, last, weight, at, sums)) return;
  add_slowly<D>(source, tile, last, weight, at, sums);
}

#endif
