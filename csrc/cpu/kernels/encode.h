// A row to packed codes and scales: the arithmetic of ../../format.h, bit by bit.

// max |x|, an infinity or a NaN where there is one: as integers, magnitudes order as they do as numbers.
inline float largest_of(const float* x, int64_t n) {
  Ints largest = {};
  for (int64_t c = 0; c < n; c += kLanes) {
    const Ints magnitude = bits_of(load(x + c)) & INT32_MAX;
    largest = magnitude > largest ? magnitude : largest;
  }
  const int32_t most = largest_lane(largest);
  float value;
  std::memcpy(&value, &most, 4);
  return value;
}

inline GroupScale encode_group(const float* x, const Packing& by, uint8_t* codes) {
  const int64_t n = by.group_size;
  const float largest = largest_of(x, n);
  if (!(largest < INFINITY)) {
    std::memset(codes, 1 << (by.bits - 1), n);
    return {NAN, NAN};
  }
  if (by.codebook == INT4KV_ASYMMETRIC) return encode_asymmetric(x, n, by.bits, codes);
  if (by.codebook == INT4KV_ABSMAX) return encode_absmax(x, n, by.bits, largest, codes);
  if (by.codebook == INT4KV_UNIFORM || by.bits == 8) return encode_uniform(x, n, by.bits, largest, codes);
  if (by.bits == 3) return encode_lloyd<3>(x, n, largest, codes);
  if (by.bits == 4) return encode_lloyd<4>(x, n, largest, codes);
  return encode_lloyd<5>(x, n, largest, codes);
}

// fp16 numbers that are not finite, and both of a group when one is not, become the format's NaN.
inline void store_scales(GroupScale found, bool with_minimum, uint16_t* scales) {
  const auto finite = [](uint16_t half) { return (half & 0x7c00) != 0x7c00; };
  const uint16_t scale = to_half(found.scale), minimum = with_minimum ? to_half(found.minimum) : 0;
  const bool kept = finite(scale) && finite(minimum);
  scales[0] = kept ? scale : INT4KV_FP16_NAN;
  if (with_minimum) scales[1] = kept ? minimum : INT4KV_FP16_NAN;
}

inline void encode(const float* row, const Packing& by, uint8_t* codes, uint16_t* scales) {
  alignas(64) uint8_t code[INT4KV_MAX_HEAD_DIM + kStep];  // a group may write a whole step
  const bool with_minimum = by.codebook == INT4KV_ASYMMETRIC;
  for (int64_t c = 0; c < by.head_dim; c += by.group_size, scales += with_minimum ? 2 : 1) {
    store_scales(encode_group(row + c, by, code + c), with_minimum, scales);
  }
  pack(code, by.head_dim, by.bits, codes);
}
