// A row's codes to and from the planes of format.h, by a simdgroup that holds one row as rows.h draws it: lane i has the code of
// channel 32 u + i in codes[u].
#ifndef INT4KV_METAL_PLANES_H
#define INT4KV_METAL_PLANES_H

#include "rows.h"

// Bits position .. position + width of the codes of one unit, as the bytes of their plane: byte i in lane i < 4 * width.
// Lane i takes channel 16 + i as its high nibble; a narrower plane then folds 8 and 4 lanes onto each other.
inline uint fold_plane(uint code, uint position, uint width) {
  uint bits = (code >> position) & ((1u << width) - 1);
  for (ushort apart = INT4KV_UNIT / 2; apart >= 4 * width; apart /= 2) bits |= simd_shuffle_xor(bits, apart) << (apart / 4);
  return bits;
}

// The bits of the lane's channel in a unit of a plane.
inline uint unfold_plane(const device uchar* unit, uint width, uint lane) {
  uint byte = lane % (INT4KV_UNIT / 2), bytes = 4 * width, high = lane / (INT4KV_UNIT / 2);
  return (unit[byte % bytes] >> (width * (byte / bytes) + 4 * high)) & ((1u << width) - 1);
}

template <int U>
inline void pack(const thread uint* codes, uint bits, uint lane, device uchar* row) {
  uint low = INT4KV_LOW_PLANE(bits), high = INT4KV_HIGH_PLANE(bits);
  for (uint u = 0; u < U; u++) {
    uint byte = fold_plane(codes[u], 0, low);
    if (lane < 4 * low) row[u * 4 * low + lane] = uchar(byte);
    if (high == 0) continue;
    byte = fold_plane(codes[u], low, high);
    if (lane < 4 * high) row[(U * low + u * high) * 4 + lane] = uchar(byte);
  }
}

// The code of channel 32 u + lane.
inline uint unpack(const device uchar* row, uint units, uint u, uint bits, uint lane) {
  uint low = INT4KV_LOW_PLANE(bits), high = INT4KV_HIGH_PLANE(bits);
  uint code = unfold_plane(row + u * 4 * low, low, lane);
  return high == 0 ? code : code | unfold_plane(row + (units * low + u * high) * 4, high, lane) << low;
}

#endif
