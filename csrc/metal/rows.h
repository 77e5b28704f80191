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

// Channels of R rows as they lie in memory, kMaxUnits after each other: on their way together, and not waited for.
template <int R>
struct RowBits {
  uint of[R * kMaxUnits];
};

template <int R, typename T>
inline void load_bits_of(const device T* data, thread const long* first, long step, uint units, thread RowBits<R>& bits) {
#pragma unroll
  for (int r = 0; r < R; r++) {
#pragma unroll
    for (uint u = 0; u < kMaxUnits; u++) {
      if (u < units) bits.of[r * kMaxUnits + u] = data[first[r] + long(INT4KV_UNIT * u) * step];
    }
  }
}

template <int R>
inline void load_bits(
    const device void* data, constant Int4kvRows& rows, thread const long* offsets, uint units, uint lane, thread RowBits<R>& bits) {
  long first[R];
  for (int r = 0; r < R; r++) first[r] = offsets[r] + long(lane) * rows.channel;
  if (rows.type == INT4KV_FLOAT32) load_bits_of<R>((const device uint*)data, first, rows.channel, units, bits);
  else load_bits_of<R>((const device ushort*)data, first, rows.channel, units, bits);
}

template <int R>
inline void numbers_of(thread const RowBits<R>& bits, uint type, uint units, thread float* x) {
  for (uint i = 0; i < R * kMaxUnits; i++) {
    if (i % kMaxUnits >= units) continue;
    if (type == INT4KV_FLOAT32) x[i] = as_type<float>(bits.of[i]);
    else if (type == INT4KV_FLOAT16) x[i] = float(as_type<half>(ushort(bits.of[i])));
    else x[i] = as_type<float>(bits.of[i] << 16);
  }
}

inline void load_row(const device void* data, constant Int4kvRows& rows, long offset, uint units, uint lane, thread float* x) {
  RowBits<1> bits;
  load_bits<1>(data, rows, &offset, units, lane, bits);
  numbers_of<1>(bits, rows.type, units, x);
}

inline void store_row(device void* data, constant Int4kvRows& rows, long offset, uint units, uint lane, const thread float* x) {
  for (uint u = 0; u < kMaxUnits; u++) {
    if (u < units) store(data, rows.type, offset + long(INT4KV_UNIT * u + lane) * rows.channel, x[u]);
  }
}

#endif
