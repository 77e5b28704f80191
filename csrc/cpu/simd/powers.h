// 2^x for x <= 0, relative error under 3e-7; 2^-126 or less below -126, NaN stays NaN.
inline Floats exp2_negative(Floats x) {
  Floats part = x;
  const Floats whole = take_whole(part);
  Floats y = fma(splat(1.5403530e-4f), part, splat(1.3333558e-3f));
  y = fma(y, part, splat(9.6181291e-3f));
  y = fma(y, part, splat(5.5504109e-2f));
  y = fma(y, part, splat(2.4022651e-1f));
  y = fma(y, part, splat(6.9314718e-1f));
  y = fma(y, part, splat(1.0f));
  return times_power(y, whole);
}

inline float exp2_negative(float x) {
  return exp2_negative(splat(x))[0];
}

// tanh(x), absolute error under 3e-7.
inline Floats tanh(Floats x) {
  const Ints sign = bits_of(x) & INT32_MIN;
  const Floats small = exp2_negative(from_bits(bits_of(x) | INT32_MIN) * 2.88539008f);  // e^(-2 |x|)
  return from_bits(bits_of((1.0f - small) / (1.0f + small)) | sign);
}
