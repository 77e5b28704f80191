// 8x8 fragments of simdgroup_matrix: which lane holds which element. Lane l holds (row, column) and (row, column + 1):
//
//   column      0    2    4    6
//   row 0       0    1    8    9        row bits 0..2 are lane bits 1, 2 and 4, column bits 1 and 2 are lane bits 0 and 3:
//   row 1       2    3   10   11        the four lanes of a row differ by 1 and 8, the eight of a column by 2, 4 and 16.
//   row 2       4    5   12   13
//   ...
//   row 7      22   23   30   31
//
// fp32 throughout: Apple's GPUs multiply fp32 fragments at the rate of fp16 ones, and attention stays as exact as on the CPU.
#ifndef INT4KV_METAL_FRAGMENTS_H
#define INT4KV_METAL_FRAGMENTS_H

#include <metal_simdgroup_matrix>

#include "rows.h"

typedef simdgroup_matrix<float, 8, 8> Fragment;

inline uint fragment_row(uint lane) {
  return ((lane >> 2) & 4) + ((lane >> 1) & 3);
}

inline uint fragment_column(uint lane) {
  return ((lane >> 1) & 4) + (lane & 1) * 2;
}

inline uint fragment_lane(uint row, uint column) {
  return (row & 4) * 4 + (row & 3) * 2 + (column & 4) * 2 + ((column >> 1) & 1);
}

inline Fragment fragment_of(float first, float second) {
  Fragment f;
  f.thread_elements()[0] = first;
  f.thread_elements()[1] = second;
  return f;
}

inline float column_max(float x) {
  x = max(x, simd_shuffle_xor(x, ushort(2)));
  x = max(x, simd_shuffle_xor(x, ushort(4)));
  return max(x, simd_shuffle_xor(x, ushort(16)));
}

inline float column_sum(float x) {
  x += simd_shuffle_xor(x, ushort(2));
  x += simd_shuffle_xor(x, ushort(4));
  return x + simd_shuffle_xor(x, ushort(16));
}

inline float row_sum(float x) {
  x += simd_shuffle_xor(x, ushort(1));
  return x + simd_shuffle_xor(x, ushort(8));
}

#endif
