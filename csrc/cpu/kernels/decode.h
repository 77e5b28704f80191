// Packed codes and scales to a row: ../../format.h.

// The levels are a polynomial in the code, rounded: no table to look up.
inline void decode_lloyd(const uint8_t* codes, int64_t n, int bits, float scale, float* x) {
  const float middle = ((1 << bits) - 1) / 2.0f, a = INT4KV_LLOYD_A(bits), b = INT4KV_LLOYD_B(bits);
  for (int64_t c = 0; c < n; c += kLanes) {
    const Floats y = to_floats(load_bytes(codes + c)) - middle, squared = y * y;
    store(x + c, scale * nearest(a * y * (squared * squared * b + 1.0f)));
  }
}

inline void decode_evenly(const uint8_t* codes, int64_t n, float middle, float scale, float* x) {
  for (int64_t c = 0; c < n; c += kLanes) store(x + c, scale * (to_floats(load_bytes(codes + c)) - middle));
}

inline void decode_asymmetric(const uint8_t* codes, int64_t n, float scale, float minimum, float* x) {
  for (int64_t c = 0; c < n; c += kLanes) store(x + c, scale * to_floats(load_bytes(codes + c)) + minimum);
}

inline void decode_group(const uint8_t* codes, const uint16_t* scales, const Packing& by, float* x) {
  const float scale = from_half(scales[0]), half = static_cast<float>(1 << (by.bits - 1));
  if (by.codebook == INT4KV_ASYMMETRIC) return decode_asymmetric(codes, by.group_size, scale, from_half(scales[1]), x);
  if (by.codebook == INT4KV_ABSMAX) return decode_evenly(codes, by.group_size, half, scale, x);
  if (by.codebook == INT4KV_UNIFORM || by.bits == 8) return decode_evenly(codes, by.group_size, half - 0.5f, scale, x);
  decode_lloyd(codes, by.group_size, by.bits, scale, x);
}

inline void decode(const uint8_t* codes, const uint16_t* scales, const Packing& by, float* row) {
  uint8_t code[INT4KV_MAX_HEAD_DIM];
  unpack(codes, by.head_dim, by.bits, code);
  for (int64_t c = 0; c < by.head_dim; c += by.group_size, scales += by.codebook == INT4KV_ASYMMETRIC ? 2 : 1) {
    decode_group(code + c, scales, by, row + c);
  }
}
