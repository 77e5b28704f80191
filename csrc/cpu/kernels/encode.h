// A row to packed codes and scales: the arithmetic of ../../format.h, bit by bit.

inline GroupScale encode_evenly(const float* x, const Packing& by, uint8_t* codes) {
  const float largest = largest_of(x, by.group_size);
  if (!(largest < INFINITY)) return encode_not_finite(by.group_size, by.bits, codes);
  if (by.codebook == INT4KV_ASYMMETRIC) return encode_asymmetric(x, by.group_size, by.bits, codes);
  if (by.codebook == INT4KV_ABSMAX) return encode_absmax(x, by.group_size, by.bits, largest, codes);
  return encode_uniform(x, by.group_size, by.bits, largest, codes);
}

inline void encode_groups(const float* x, int64_t groups, const Packing& by, uint8_t* codes, GroupScale* found) {
  const int64_t n = by.group_size;
  const int lloyd_bits = by.codebook == INT4KV_LLOYD ? by.bits : 0;
  if (lloyd_bits == 3) return encode_lloyd<3>(x, groups, n, codes, found);
  if (lloyd_bits == 4) return encode_lloyd<4>(x, groups, n, codes, found);
  if (lloyd_bits == 5) return encode_lloyd<5>(x, groups, n, codes, found);
  for (int64_t g = 0; g < groups; ++g) found[g] = encode_evenly(x + g * n, by, codes + g * n);
}

// fp16 numbers that are not finite, and both of a group when one is not, become the format's NaN.
inline void store_scales(GroupScale found, bool with_minimum, uint16_t* scales) {
  const auto finite = [](uint16_t half) { return (half & 0x7c00) != 0x7c00; };
  const uint16_t scale = to_half(found.scale), minimum = with_minimum ? to_half(found.minimum) : 0;
  const bool kept = finite(scale) && finite(minimum);
  scales[0] = kept ? scale : INT4KV_FP16_NAN;
  if (with_minimum) scales[1] = kept ? minimum : INT4KV_FP16_NAN;
}

inline void encode(const float* rows, int64_t count, const Packing& by, uint8_t* const* codes, uint16_t* scales) {
  alignas(64) uint8_t each[kRowsTogether * INT4KV_MAX_HEAD_DIM + kStep];  // a group may write a whole step
  GroupScale found[kMostGroups];
  const int64_t groups = count * by.head_dim / by.group_size;
  const bool with_minimum = by.codebook == INT4KV_ASYMMETRIC;
  encode_groups(rows, groups, by, each, found);
  for (int64_t g = 0; g < groups; ++g, scales += with_minimum ? 2 : 1) store_scales(found[g], with_minimum, scales);
  for (int64_t r = 0; r < count; ++r) pack(each + r * by.head_dim, by.head_dim, by.bits, codes[r]);
}
