// What a simdgroup sums up: O^T, head_dim by 8 columns, as the accumulators of
//
//   O^T (16 channels x 8 columns) += V^T (16 channels x 16 tokens) * P^T (16 tokens x 8 columns)
//
// of product 2 u + h: lane 4 g + j has channel 32 u + 2 g + h (elements 0 and 1) and the one 16 further (2 and 3), columns 2 j and 2 j + 1.
#ifndef INT4KV_CUDA_SUMS_H
#define INT4KV_CUDA_SUMS_H

#include "ring.h"

// While codes are added, o is in units of unit * 2^-24 and has an offset, which values.h explains. A unit is a power of two that keeps
// V's scales within fp16 however large or small the values are.
template <int D>
struct Sums {
  float o[D / 16][4], offset[4];
  uint beside[4];
  float unit;
  half2 limit, inverse;  // what scales may be at most, and one over it: the unit, twice each
};

// A unit for the sums, of which there are none yet, or which have been put into it.
template <int D>
inline void set_unit(Sums<D>& sums, float unit) {
  float inverse = as_type<float>(0x7f000000u - as_type<uint>(unit));
  sums.unit = unit;
  sums.limit = half_pair(unit, unit);
  sums.inverse = half_pair(inverse, inverse);
}

template <int D>
inline void clear(Sums<D>& sums) {
  sums.unit = 0.0f;
  sums.limit = sums.inverse = as_type<half2>(0u);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    sums.offset[i] = 0.0f;
#pragma unroll
    for (int f = 0; f < D / 16; f++) sums.o[f][i] = 0.0f;
  }
}

constant constexpr float kLeastUnit = 1.0f / 32768.0f;  // its inverse is an fp16 number

template <int N>
inline half2 largest_scales(half2 found, const Scales<N>& scale) {
#pragma unroll
  for (int i = 0; i < N / 2; i++) found = largest_pair(found, scale.pair(i));
  return found;
}

// Whether a scale is too large for the sums' unit.
template <int D, int N>
inline bool outgrows(const Sums<D>& sums, const Scales<N>& scale) {
  return as_type<uint>(largest_scales<N>(sums.limit, scale)) != as_type<uint>(sums.limit);
}

// Their unit as large as the scales; and the sums of the column, if there are any, times by[0].
template <int D, int N>
inline void rescale(Sums<D>& sums, const float* by, bool filled, const Scales<N>& scale, Place at) {
  half2 largest = largest_scales<N>(scale.pair(0), scale);
  float found = simd_largest(max(max(float(largest.x), float(largest.y)), kLeastUnit)), before = sums.unit;
  set_unit(sums, max(before, as_type<float>((as_type<uint>(found) + 0x007fffffu) & INT4KV_FP32_INF_BITS)));
  if (!filled) return;
  float shrink = before * float(sums.inverse.x);
  float factor[2] = {simd_shuffle(by[0], ushort(8 * at.quarter)) * shrink, simd_shuffle(by[0], ushort(8 * at.quarter + 4)) * shrink};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    sums.offset[i] *= factor[i % 2];
#pragma unroll
    for (int f = 0; f < D / 16; f++) sums.o[f][i] *= factor[i % 2];
  }
}

constexpr uint joined_stride(int head_dim) {
  return head_dim + 4;
}

// Each simdgroup leaves its sums, which are of unit 1, in its scratch.
template <int D, int B>
inline void join_simdgroups(
    const Sums<D>& sums, const Statistics&, uint simdgroup, Place at, threadgroup float* scratch, threadgroup float*) {
  constexpr uint stride = joined_stride(D);
  asm volatile("cp.async.wait_all;" : : : "memory");
  __syncwarp();
  threadgroup float* own = scratch_of<D, B>(scratch, simdgroup);
#pragma unroll
  for (uint e = 0; e < 2; e++) {
#pragma unroll
    for (uint i = 0; i < D / 16; i++) {
      float2* to = (float2*)(own + (2 * at.quarter + e) * stride + 32 * (i / 2) + 16 * (i % 2) + 2 * at.column_);
      *to = float2(sums.o[i / 2 * 2][2 * (i % 2) + e], sums.o[i / 2 * 2 + 1][2 * (i % 2) + e]);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// U units of row n of what all simdgroups left, from unit `first` on.
template <int D, int B, uint U>
inline Joined joined_row(const Statistics& found, uint n, uint first, uint lane, const threadgroup float* scratch, const threadgroup float*) {
  const uint part = min(lane, INT4KV_SIMDGROUPS - 1) * INT4KV_COLUMNS + n;
  float weight;
  Joined joined = joined_statistics(found.maxima[part], lane < INT4KV_SIMDGROUPS ? found.sums[part] : 0.0f, weight);
#pragma unroll
  for (uint s = 0; s < INT4KV_SIMDGROUPS; s++) {
    float of_part = simd_shuffle(weight, ushort(s));
    const threadgroup float* from = scratch_of<D, B>(scratch, s) + n * joined_stride(D) + INT4KV_UNIT * first + lane;
#pragma unroll
    for (uint u = 0; u < U; u++) joined.x[u] = fma(of_part, from[INT4KV_UNIT * u], joined.x[u]);
  }
  return joined;
}

#endif
