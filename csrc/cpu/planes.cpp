#include "planes.h"

#include <cstring>

#include "../format.h"

namespace int4kv {
namespace {

constexpr int kHalf = INT4KV_UNIT / 2;

// One plane of `Width` bits, which are bits position .. position + Width of each code.
template <int Width>
void pack_plane(const uint8_t* codes, int64_t units, int position, uint8_t* plane) {
  constexpr int kBytes = 4 * Width, kMask = (1 << Width) - 1;
  std::memset(plane, 0, units * kBytes);
  for (int64_t u = 0; u < units; ++u, codes += INT4KV_UNIT, plane += kBytes) {
    for (int i = 0; i < kHalf; ++i) {
      const int low = codes[i] >> position & kMask, high = codes[kHalf + i] >> position & kMask;
      plane[i % kBytes] |= (low | high << 4) << Width * (i / kBytes);
    }
  }
}

template <int Width>
void unpack_plane(const uint8_t* plane, int64_t units, int position, uint8_t* codes) {
  constexpr int kBytes = 4 * Width, kMask = (1 << Width) - 1;
  for (int64_t u = 0; u < units; ++u, codes += INT4KV_UNIT, plane += kBytes) {
    for (int i = 0; i < kHalf; ++i) {
      const int byte = plane[i % kBytes] >> Width * (i / kBytes);
      codes[i] |= (byte & kMask) << position;
      codes[kHalf + i] |= (byte >> 4 & kMask) << position;
    }
  }
}

void unpack_nibbles(const uint8_t* plane, int64_t units, uint8_t* codes) {
  for (int64_t u = 0; u < units; ++u, codes += INT4KV_UNIT, plane += kHalf) {
    for (int i = 0; i < kHalf; ++i) {
      codes[i] = plane[i] & 15;
      codes[kHalf + i] = plane[i] >> 4;
    }
  }
}

} // namespace

void pack(const uint8_t* codes, int64_t head_dim, int64_t bits, uint8_t* row) {
  const int64_t units = head_dim / INT4KV_UNIT;
  uint8_t* high = row + head_dim * INT4KV_LOW_PLANE(bits) / 8;
  bits == 3 ? pack_plane<2>(codes, units, 0, row) : pack_plane<4>(codes, units, 0, row);
  if (bits == 3) pack_plane<1>(codes, units, 2, high);
  if (bits == 5) pack_plane<1>(codes, units, 4, high);
  if (bits == 8) pack_plane<4>(codes, units, 4, high);
}

void unpack(const uint8_t* row, int64_t head_dim, int64_t bits, uint8_t* codes) {
  const int64_t units = head_dim / INT4KV_UNIT;
  const uint8_t* high = row + head_dim * INT4KV_LOW_PLANE(bits) / 8;
  if (bits == 3) {
    std::memset(codes, 0, head_dim);
    unpack_plane<2>(row, units, 0, codes);
    return unpack_plane<1>(high, units, 2, codes);
  }
  unpack_nibbles(row, units, codes);
  if (bits == 5) unpack_plane<1>(high, units, 4, codes);
  if (bits == 8) unpack_plane<4>(high, units, 4, codes);
}

} // namespace int4kv
