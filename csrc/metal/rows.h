// Rows of head_dim channels behind any strides, offset and floating type; a simdgroup holds one in registers:
//
//   lane     0   1   2       31
//   x[0]    c0  c1  c2  ... c31        channel 32 u + lane in register u, u < units = head_dim / 32
//   x[1]   c32 c33 c34  ... c63        (the lanes of format.h's lane_sum)
//
// Arithmetic is IEEE fp32 as it stands here: no contraction, a fused multiply-add is written as fma().
#ifndef INT4KV_METAL_ROWS_H
#define INT4KV_METAL_ROWS_H

#include <metal_stdlib>

#include "../format.h"
#include "entry.h"
#include "parameters.h"

#pragma clang fp contract(off)

using namespace metal;

constant constexpr uint kMaxUnits = INT4KV_MAX_HEAD_DIM / INT4KV_UNIT;

inline float load(const device void* data, uint type, long i) {
  if (type == INT4KV_FLOAT32) return ((const device float*)data)[i];
  if (type == INT4KV_FLOAT16) return float(((const device half*)data)[i]);
  return float(((const device bfloat*)data)[i]);
}

inline void store(device void* data, uint type, long i, float x) {
  if (type == INT4KV_FLOAT32) {
    ((device float*)data)[i] = x;
  } else if (type == INT4KV_FLOAT16) {
    ((device half*)data)[i] = half(x);
  } else {
    ((device bfloat*)data)[i] = bfloat(x);
  }
}

inline long row_offset(constant Int4kvRows& rows, uint batch, uint head, uint token) {
  return long(batch) * rows.batch + long(head) * rows.head + long(token) * rows.token;
}

// The slot of a token, counted from the one that is in first_slot.
inline uint slot_of(uint first_slot, uint token, uint capacity) {
  uint slot = first_slot + token;
  return slot < capacity ? slot : slot - capacity;
}

template <int R, typename T>
inline void load_rows_of(const device T* data, thread const long* offsets, long step, uint units, thread float* x) {
#pragma unroll
  for (int r = 0; r < R; r++) {
#pragma unroll
    for (uint u = 0; u < kMaxUnits; u++) {
      if (u < units) x[r * kMaxUnits + u] = float(data[offsets[r] + long(INT4KV_UNIT * u) * step]);
    }
  }
}

// R rows, each kMaxUnits after the one before. The type is asked for once, so that all loads are on their way together.
template <int R>
inline void load_rows(
    const device void* data, constant Int4kvRows& rows, thread const long* offsets, uint units, uint lane, thread float* x) {
  long first[R];
  for (int r = 0; r < R; r++) first[r] = offsets[r] + long(lane) * rows.channel;
  if (rows.type == INT4KV_FLOAT32) load_rows_of<R>((const device float*)data, first, rows.channel, units, x);
  else if (rows.type == INT4KV_FLOAT16) load_rows_of<R>((const device half*)data, first, rows.channel, units, x);
  else load_rows_of<R>((const device bfloat*)data, first, rows.channel, units, x);
}

inline void load_row(const device void* data, constant Int4kvRows& rows, long offset, uint units, uint lane, thread float* x) {
  load_rows<1>(data, rows, &offset, units, lane, x);
}

inline void store_row(device void* data, constant Int4kvRows& rows, long offset, uint units, uint lane, const thread float* x) {
  for (uint u = 0; u < kMaxUnits; u++) {
    if (u < units) store(data, rows.type, offset + long(INT4KV_UNIT * u + lane) * rows.channel, x[u]);
  }
}

#endif
