// Mathematics: every function takes scalars and vectors alike.
#pragma once
#include "lint_vectors.h"

#define METAL_ONE(name)  \
  template <typename T>  \
  constexpr T name(T);
#define METAL_TWO(name)                      \
  template <typename A, typename B>          \
  constexpr wider_t<A, B> name(A, B);
#define METAL_THREE_ARGUMENTS(name)                      \
  template <typename A, typename B, typename C>          \
  constexpr wider_t<wider_t<A, B>, C> name(A, B, C);
#define METAL_TEST(name) \
  template <typename T>  \
  constexpr truth_t<T> name(T);
#define METAL_TEST_OF_TWO(name) \
  template <typename T>         \
  constexpr truth_t<T> name(T, T);

#define METAL_ROUNDED_FUNCTIONS                                                                              \
  METAL_ONE(acos) METAL_ONE(acosh) METAL_ONE(asin) METAL_ONE(asinh) METAL_ONE(atan) METAL_ONE(atanh)         \
  METAL_ONE(ceil) METAL_ONE(cos) METAL_ONE(cosh) METAL_ONE(cospi) METAL_ONE(exp) METAL_ONE(exp2)             \
  METAL_ONE(exp10) METAL_ONE(fabs) METAL_ONE(floor) METAL_ONE(fract) METAL_ONE(log) METAL_ONE(log2)          \
  METAL_ONE(log10) METAL_ONE(rint) METAL_ONE(round) METAL_ONE(rsqrt) METAL_ONE(saturate) METAL_ONE(sin)      \
  METAL_ONE(sinh) METAL_ONE(sinpi) METAL_ONE(sqrt) METAL_ONE(tan) METAL_ONE(tanh) METAL_ONE(tanpi)           \
  METAL_ONE(trunc) METAL_ONE(sign) METAL_ONE(abs) METAL_TWO(atan2) METAL_TWO(copysign) METAL_TWO(divide)     \
  METAL_TWO(fdim) METAL_TWO(fmax) METAL_TWO(fmin) METAL_TWO(fmod) METAL_TWO(max) METAL_TWO(min)              \
  METAL_TWO(nextafter) METAL_TWO(pow) METAL_TWO(powr) METAL_TWO(step) METAL_THREE_ARGUMENTS(clamp)           \
  METAL_THREE_ARGUMENTS(fma) METAL_THREE_ARGUMENTS(max3) METAL_THREE_ARGUMENTS(median3)                      \
  METAL_THREE_ARGUMENTS(min3) METAL_THREE_ARGUMENTS(mix) METAL_THREE_ARGUMENTS(smoothstep)                   \
  METAL_TEST(isfinite) METAL_TEST(isinf) METAL_TEST(isnan) METAL_TEST(isnormal) METAL_TEST(signbit)          \
  METAL_TEST_OF_TWO(isunordered) METAL_TEST_OF_TWO(isordered)                                                    \
  template <typename T>                                                                                      \
  T sincos(T, __private T& cosine);

namespace metal {

METAL_ROUNDED_FUNCTIONS
namespace fast {
METAL_ROUNDED_FUNCTIONS
}
namespace precise {
METAL_ROUNDED_FUNCTIONS
}

// Preferred to a template of the same name that a program has of its own.
#define METAL_EXACT(T)      \
  constexpr T abs(T);       \
  constexpr T max(T, T);    \
  constexpr T min(T, T);    \
  constexpr T clamp(T, T, T);
METAL_EXACT(char) METAL_EXACT(uchar) METAL_EXACT(short) METAL_EXACT(ushort) METAL_EXACT(int) METAL_EXACT(uint)
METAL_EXACT(long) METAL_EXACT(ulong) METAL_EXACT(half) METAL_EXACT(float)

METAL_ONE(clz) METAL_ONE(ctz) METAL_ONE(popcount) METAL_ONE(reverse_bits) METAL_ONE(normalize)
METAL_TWO(absdiff) METAL_TWO(addsat) METAL_TWO(subsat) METAL_TWO(hadd) METAL_TWO(rhadd) METAL_TWO(mulhi)
METAL_TWO(mul24) METAL_TWO(rotate) METAL_THREE_ARGUMENTS(mad24) METAL_THREE_ARGUMENTS(madhi)
template <typename T>
constexpr T extract_bits(T, uint offset, uint bits);
template <typename T>
constexpr T insert_bits(T base, T insert, uint offset, uint bits);

template <typename T, typename E>
constexpr T ldexp(T, E);
template <typename T>
T frexp(T, __private int& exponent);
template <typename T>
T modf(T, __private T& whole);
int ilogb(float);

template <typename T, int N>
constexpr T dot(vec<T, N>, vec<T, N>);
template <typename T, int N>
constexpr T length(vec<T, N>);
template <typename T, int N>
constexpr T length_squared(vec<T, N>);
template <typename T, int N>
constexpr T distance(vec<T, N>, vec<T, N>);
template <typename T>
constexpr bool any(T);
template <typename T>
constexpr bool all(T);
template <typename A, typename B, typename C>
constexpr wider_t<A, B> select(A, B, C);

float4 unpack_unorm4x8_to_float(uint);
float4 unpack_snorm4x8_to_float(uint);
uint pack_float_to_unorm4x8(float4);
uint pack_float_to_snorm4x8(float4);

}  // namespace metal
