// Groups of channels to codes of evenly spaced levels: uniform, absmax and asymmetric of ../../format.h.
struct GroupScale {
  float scale, minimum;  // not yet rounded to fp16
};

inline GroupScale encode_not_finite(int64_t n, int bits, uint8_t* codes) {
  std::memset(codes, 1 << (bits - 1), n);
  return {NAN, NAN};
}

inline float inverse_of(float step, float largest) {
  return largest < INT4KV_TINY ? 0.0f : 1.0f / step;
}

// clamp(floor(x)) for least >= 0: below zero, where cutting off is not floor, both are clamped.
inline Ints floor_between(Floats x, int32_t least, int32_t most) {
  Ints code = __builtin_convertvector(x, Ints);
  code = code < least ? splat(least) : code;
  return code > most ? splat(most) : code;
}

inline GroupScale encode_uniform(const float* x, int64_t n, int bits, float largest, uint8_t* codes) {
  const int32_t top = (1 << bits) - 1;
  const float inverse = inverse_of(largest * (INT4KV_CLIP(bits) / (top / 2.0f)), largest), offset = static_cast<float>(1 << (bits - 1));
  LaneSum products;
  Ints squares = {};
  for (int64_t c = 0; c < n; c += INT4KV_UNIT) {
    for (int i = 0; i < LaneSum::kVectors; ++i) {
      const Floats y = load(x + c + i * kLanes);
      const Ints code = floor_between(y * inverse + offset, 0, top), odd = 2 * code - top;
      products.lanes[i] += y * to_floats(odd);
      squares += odd * odd;
      store_bytes(codes + c + i * kLanes, code);
    }
  }
  return {inverse == 0.0f ? 0.0f : 2.0f * products.total() / static_cast<float>(sum(squares)), 0.0f};
}

inline GroupScale encode_absmax(const float* x, int64_t n, int bits, float largest, uint8_t* codes) {
  const int32_t half = 1 << (bits - 1);
  const float step = largest / static_cast<float>(half - 1), inverse = inverse_of(step, largest), offset = static_cast<float>(half) + 0.5f;
  for (int64_t c = 0; c < n; c += kLanes) store_bytes(codes + c, floor_between(load(x + c) * inverse + offset, 1, 2 * half - 1));
  return {inverse == 0.0f ? 0.0f : step, 0.0f};
}

inline GroupScale encode_asymmetric(const float* x, int64_t n, int bits, uint8_t* codes) {
  Floats low = load(x), high = low;
  for (int64_t c = kLanes; c < n; c += kLanes) {
    const Floats y = load(x + c);
    low = y < low ? y : low;
    high = y > high ? y : high;
  }
  const int32_t top = (1 << bits) - 1;
  const float minimum = smallest_lane(low) + 0.0f, range = largest_lane(high) - minimum;
  const float step = range / static_cast<float>(top), inverse = inverse_of(step, range);
  for (int64_t c = 0; c < n; c += kLanes) store_bytes(codes + c, floor_between((load(x + c) - minimum) * inverse + 0.5f, 0, top));
  return {inverse == 0.0f ? 0.0f : step, minimum};
}
