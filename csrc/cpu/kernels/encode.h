// A row to packed codes and scales: the arithmetic of ../../format.h, bit by bit.

// max |x|, an infinity or a NaN where there is one: as integers, magnitudes order as they do as numbers.
inline float largest_of(const float* x, int64_t n) {
  Ints lanes[LaneSum::kVectors] = {};
  for (int64_t c = 0; c < n; c += INT4KV_UNIT) {
#pragma GCC unroll 8
    for (int i = 0; i < LaneSum::kVectors; ++i) {
      const Ints magnitude = bits_of(magnitude_of(load(x + c + i * kLanes)));
      lanes[i] = magnitude > lanes[i] ? magnitude : lanes[i];
    }
  }
  Ints largest = lanes[0];
  for (int i = 1; i < LaneSum::kVectors; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  const int32_t most = largest_lane(largest);
  float value;
  std::memcpy(&value, &most, 4);
  return value;
}

inline GroupScale encode_evenly(const float* x, const Packing& by, float largest, uint8_t* codes) {
  if (by.codebook == INT4KV_ASYMMETRIC) return encode_asymmetric(x, by.group_size, by.bits, codes);
  if (by.codebook == INT4KV_ABSMAX) return encode_absmax(x, by.group_size, by.bits, largest, codes);
  return encode_uniform(x, by.group_size, by.bits, largest, codes);
}

// A byte each, and scales that are not yet rounded to fp16.
inline void encode_groups(const float* x, int64_t groups, const Packing& by, uint8_t* codes, GroupScale* found) {
  const int64_t n = by.group_size;
  float largest[kMostGroups];
  for (int64_t g = 0; g < groups; ++g) largest[g] = largest_of(x + g * n, n);
  if (by.codebook != INT4KV_LLOYD || by.bits == 8) {
    for (int64_t g = 0; g < groups; ++g) found[g] = encode_evenly(x + g * n, by, largest[g], codes + g * n);
  } else {
    const auto encode_all = by.bits == 3 ? encode_lloyd<3> : by.bits == 4 ? encode_lloyd<4> : encode_lloyd<5>;
    encode_all(x, groups, n, largest, codes, found);
  }
  for (int64_t g = 0; g < groups; ++g) {
    if (largest[g] < INFINITY) continue;
    std::memset(codes + g * n, 1 << (by.bits - 1), n);
    found[g] = {NAN, NAN};
  }
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
