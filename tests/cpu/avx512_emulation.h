// AVX-512 on a processor without it, for kernels_avx512.cpp: SIMDe, and lane by lane what SIMDe 0.7.4 lacks.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

namespace avx512_emulation {

template <typename Lane, int kCount>
struct Lanes {
  Lane lane[kCount];
};

// The vector whose lane i is of(lane i of x).
template <typename Result, typename To, typename From, int kCount, typename Vector, typename Of>
inline Result each(Vector x, Of of) {
  static_assert(sizeof(Result) == kCount * sizeof(To) && sizeof(Vector) == kCount * sizeof(From));
  Lanes<From, kCount> from;
  Lanes<To, kCount> to;
  std::memcpy(&from, &x, sizeof from);
  for (int i = 0; i < kCount; ++i) to.lane[i] = of(from.lane[i]);
  Result result;
  std::memcpy(&result, &to, sizeof result);
  return result;
}

// All lanes joined in halves, as the reductions of immintrin.h do: 8, 4, 2, 1 apart.
template <typename Lane, typename Vector, typename Join>
inline Lane reduce(Vector x, Join join) {
  Lanes<Lane, 16> from;
  std::memcpy(&from, &x, sizeof from);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) from.lane[i] = join(from.lane[i], from.lane[i + half]);
  }
  return from.lane[0];
}

inline __m512i cvtepu16_epi32(__m256i x) { return each<__m512i, uint32_t, uint16_t, 16>(x, [](uint16_t lane) { return lane; }); }
inline __m512i cvtepu8_epi32(__m128i x) { return each<__m512i, uint32_t, uint8_t, 16>(x, [](uint8_t lane) { return lane; }); }
inline __m256i cvtepi32_epi16(__m512i x) { return each<__m256i, uint16_t, uint32_t, 16>(x, [](uint32_t lane) { return uint16_t(lane); }); }
inline __m128i cvtepi32_epi8(__m512i x) { return each<__m128i, uint8_t, uint32_t, 16>(x, [](uint32_t lane) { return uint8_t(lane); }); }

inline __m512 cvtph_ps(__m256i x) {
  return each<__m512, float, uint16_t, 16>(x, [](uint16_t lane) { return simde_float16_to_float32(simde_uint16_as_float16(lane)); });
}

// To nearest even, the rounding asked for: x86's own instruction is not there either without F16C, and SIMDe's does not round.
inline uint16_t to_half(float x) {
  const float magnitude = std::fabs(x);
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (!(magnitude < 65520.0f)) return sign | (magnitude == magnitude ? 0x7c00 : 0x7e00);
  int exponent;
  std::frexp(magnitude, &exponent);
  exponent = exponent < -13 || magnitude == 0.0f ? -13 : exponent;  // zero and subnormal ones share the exponent of 2^-14
  const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));  // of 2^(exponent - 11): up to 2^11
  return sign | static_cast<uint16_t>(((exponent + 13) << 10) + units);
}

inline __m256i cvtps_ph(__m512 x, int) { return each<__m256i, uint16_t, float, 16>(x, to_half); }

inline float reduce_add_ps(__m512 x) { return reduce<float>(x, [](float a, float b) { return a + b; }); }
inline float reduce_max_ps(__m512 x) { return reduce<float>(x, [](float a, float b) { return a > b ? a : b; }); }
inline int32_t reduce_add_epi32(__m512i x) { return reduce<int32_t>(x, [](int32_t a, int32_t b) { return a + b; }); }

} // namespace avx512_emulation

#define _mm512_cvtepu16_epi32 avx512_emulation::cvtepu16_epi32
#define _mm512_cvtepu8_epi32 avx512_emulation::cvtepu8_epi32
#define _mm512_cvtepi32_epi16 avx512_emulation::cvtepi32_epi16
#define _mm512_cvtepi32_epi8 avx512_emulation::cvtepi32_epi8
#define _mm512_cvtph_ps avx512_emulation::cvtph_ps
#define _mm512_cvtps_ph avx512_emulation::cvtps_ph
#define _mm512_reduce_add_ps avx512_emulation::reduce_add_ps
#define _mm512_reduce_max_ps avx512_emulation::reduce_max_ps
#define _mm512_reduce_add_epi32 avx512_emulation::reduce_add_epi32
#ifndef _MM_FROUND_TO_NEAREST_INT
#define _MM_FROUND_TO_NEAREST_INT 0
#endif
#ifndef _MM_FROUND_NO_EXC
#define _MM_FROUND_NO_EXC 8
#endif
