// Codes, a byte each, to and from the planes of a packed row: ../../format.h draws them. Eight codes at a time in 64-bit integers, lowest
// byte first as in memory, two of them side by side; no byte's bits reach the next one.
typedef uint64_t Sixteen __attribute__((vector_size(16)));
constexpr uint64_t kEachByte = 0x0101010101010101u;

inline uint64_t load_eight(const uint8_t* x) {
  uint64_t eight;
  std::memcpy(&eight, x, 8);
  return eight;
}

// One plane of kWidth bits, which are bits position .. position + kWidth of each code.
template <int kWidth>
void pack_plane(const uint8_t* codes, int64_t head_dim, int position, uint8_t* plane) {
  constexpr uint64_t kMask = kEachByte * ((1 << kWidth) - 1);
  for (int64_t c = 0; c < head_dim; c += INT4KV_UNIT, plane += 4 * kWidth) {
    Sixteen low, high;
    std::memcpy(&low, codes + c, 16);
    std::memcpy(&high, codes + c + 16, 16);
    Sixteen pairs = (low >> position & kMask) | (high >> position & kMask) << 4;
    if (kWidth < 4) pairs[0] |= pairs[1] << 2;
    if (kWidth < 2) pairs[0] |= pairs[0] >> 32 << 1;
    std::memcpy(plane, &pairs, 4 * kWidth);
  }
}

template <int kWidth>
void unpack_plane(const uint8_t* plane, int64_t head_dim, int position, uint8_t* codes) {
  constexpr uint64_t kMask = kEachByte * ((1 << kWidth) - 1);
  for (int64_t c = 0; c < head_dim; c += INT4KV_UNIT, plane += 4 * kWidth) {
    uint64_t pairs[2] = {};
    std::memcpy(pairs, plane, 4 * kWidth);
    if (kWidth < 2) pairs[0] |= pairs[0] >> 1 << 32;
    if (kWidth < 4) pairs[1] = pairs[0] >> 2;
    for (int i = 0; i < 4; ++i) {
      const uint64_t eight = load_eight(codes + c + 8 * i) | (pairs[i % 2] >> 4 * (i / 2) & kMask) << position;
      std::memcpy(codes + c + 8 * i, &eight, 8);
    }
  }
}

inline void pack(const uint8_t* codes, int64_t head_dim, int bits, uint8_t* row) {
  uint8_t* high = row + head_dim * INT4KV_LOW_PLANE(bits) / 8;
  bits == 3 ? pack_plane<2>(codes, head_dim, 0, row) : pack_plane<4>(codes, head_dim, 0, row);
  if (bits == 3) pack_plane<1>(codes, head_dim, 2, high);
  if (bits == 5) pack_plane<1>(codes, head_dim, 4, high);
  if (bits == 8) pack_plane<4>(codes, head_dim, 4, high);
}

inline void unpack(const uint8_t* row, int64_t head_dim, int bits, uint8_t* codes) {
  const uint8_t* high = row + head_dim * INT4KV_LOW_PLANE(bits) / 8;
  std::memset(codes, 0, head_dim);
  bits == 3 ? unpack_plane<2>(row, head_dim, 0, codes) : unpack_plane<4>(row, head_dim, 0, codes);
  if (bits == 3) unpack_plane<1>(high, head_dim, 2, codes);
  if (bits == 5) unpack_plane<1>(high, head_dim, 4, codes);
  if (bits == 8) unpack_plane<4>(high, head_dim, 4, codes);
}
