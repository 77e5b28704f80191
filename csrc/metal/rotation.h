// y = R x of a row in registers (rows.h), by a randomised Hadamard rotation in blocks or a dense matrix, and x = R^T y.
// The Hadamard butterflies are 1, 2, 4, ... channels apart, in this order: it is part of the format. Up to 16 apart the partner
// is another lane, beyond it another register. A dense product adds channel after channel.
#ifndef INT4KV_METAL_ROTATION_H
#define INT4KV_METAL_ROTATION_H

#include "rows.h"

inline void hadamard(thread float* x, uint block, uint units, uint lane, float norm) {
  for (ushort apart = 1; apart < INT4KV_SIMD; apart *= 2) {
    if (apart >= block) continue;
    float sign = (lane & apart) ? -1.0f : 1.0f;
    for (uint u = 0; u < kMaxUnits; u++) {
      if (u < units) x[u] = fma(x[u], sign, simd_shuffle_xor(x[u], apart));
    }
  }
  for (uint apart = 1; apart < kMaxUnits; apart *= 2) {
    for (uint u = 0; u < kMaxUnits; u++) {
      if (INT4KV_UNIT * apart >= block || u >= units || (u & apart)) continue;
      float a = x[u], b = x[u + apart];
      x[u] = a + b;
      x[u + apart] = a - b;
    }
  }
  for (uint u = 0; u < kMaxUnits; u++) x[u] *= norm;
}

struct RowRegisters {
  float x[kMaxUnits];
};

// The signs of a Hadamard rotation, loaded before what waits for them.
inline RowRegisters signs_of(constant Int4kvRotation& rotation, const device float* by, uint units, uint lane) {
  RowRegisters signs;
  for (uint u = 0; u < kMaxUnits; u++) {
    signs.x[u] = u < units && rotation.kind == INT4KV_HADAMARD ? by[INT4KV_UNIT * u + lane] : 1.0f;
  }
  return signs;
}

inline void multiply_signs(thread float* x, thread const RowRegisters& signs, uint units) {
  for (uint u = 0; u < kMaxUnits; u++) {
    if (u < units) x[u] *= signs.x[u];
  }
}

// y[c] = sum over j of matrix[c * row + j * column] * x[j]
INT4KV_SELDOM RowRegisters
times_matrix(RowRegisters row, const device float* matrix, uint row_step, uint column_step, uint units, uint lane) {
  RowRegisters y = {};
  for (uint j = 0; j < kMaxUnits; j++) {
    for (ushort i = 0; j < units && i < INT4KV_UNIT; i++) {
      float value = simd_shuffle(row.x[j], i);
      const device float* from = matrix + (INT4KV_UNIT * j + i) * column_step;
      for (uint u = 0; u < kMaxUnits; u++) {
        if (u < units) y.x[u] = y.x[u] + from[(INT4KV_UNIT * u + lane) * row_step] * value;
      }
    }
  }
  return y;
}

inline void multiply_matrix(thread float* x, const device float* matrix, uint row_step, uint column_step, uint units, uint lane) {
  RowRegisters row;
  for (uint u = 0; u < kMaxUnits; u++) row.x[u] = x[u];
  row = times_matrix(row, matrix, row_step, column_step, units, lane);
  for (uint u = 0; u < kMaxUnits; u++) x[u] = row.x[u];
}

// `signs` are those of the rotation. `dense`: it may be a matrix, which a caller can rule out.
inline void rotate(
    thread float* x, constant Int4kvRotation& rotation, const device float* by, thread const RowRegisters& signs, uint head, uint units,
    uint lane, bool dense = true) {
  if (rotation.kind == INT4KV_HADAMARD) {
    multiply_signs(x, signs, units);
    hadamard(x, rotation.block, units, lane, rotation.norm);
  } else if (dense && rotation.kind == INT4KV_DENSE) {
    multiply_matrix(x, by + long(head) * rotation.head, INT4KV_UNIT * units, 1, units, lane);
  }
}

inline void unrotate(
    thread float* x, constant Int4kvRotation& rotation, const device float* by, thread const RowRegisters& signs, uint head, uint units,
    uint lane, bool dense = true) {
  if (rotation.kind == INT4KV_HADAMARD) {
    hadamard(x, rotation.block, units, lane, rotation.norm);
    multiply_signs(x, signs, units);
  } else if (dense && rotation.kind == INT4KV_DENSE) {
    multiply_matrix(x, by + long(head) * rotation.head, 1, INT4KV_UNIT * units, units, lane);
  }
}

#endif
