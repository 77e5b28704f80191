// <metal_integer> and <metal_relational>.
#pragma once
#include "math.h"

namespace msl {
template <typename T>
constexpr int bits_of = sizeof(T) * 8;
}

namespace metal {

// Integer functions are overloads per type, not templates: max(int, uint) is ambiguous, as in Metal.
#define MSL_INTEGER_FUNCTIONS(T) \
  constexpr T max(T a, T b) { return a < b ? b : a; } \
  constexpr T min(T a, T b) { return b < a ? b : a; } \
  constexpr T clamp(T x, T low, T high) { return min(max(x, low), high); } \
  constexpr T abs(T a) { return a < T(0) ? T(-a) : a; } \
  constexpr __make_unsigned(T) absdiff(T a, T b) { \
    using U = __make_unsigned(T); \
    return a < b ? U(U(b) - U(a)) : U(U(a) - U(b)); \
  } \
  constexpr T addsat(T a, T b) { \
    T sum{}; \
    return !__builtin_add_overflow(a, b, &sum) ? sum : b < T(0) ? numeric_limits<T>::min() : numeric_limits<T>::max(); \
  } \
  constexpr T subsat(T a, T b) { \
    T difference{}; \
    if (!__builtin_sub_overflow(a, b, &difference)) return difference; \
    return a < b ? numeric_limits<T>::min() : numeric_limits<T>::max(); \
  } \
  constexpr T hadd(T a, T b) { return T((__int128(a) + b) >> 1); } \
  constexpr T rhadd(T a, T b) { return T((__int128(a) + b + 1) >> 1); } \
  constexpr T mulhi(T a, T b) { return T((__int128(a) * __int128(b)) >> msl::bits_of<T>); } \
  constexpr T popcount(T x) { return T(__builtin_popcountll(static_cast<__make_unsigned(T)>(x))); } \
  constexpr T clz(T x) { \
    return x == 0 ? T(msl::bits_of<T>) : T(__builtin_clzll(static_cast<__make_unsigned(T)>(x)) - (64 - msl::bits_of<T>)); \
  } \
  constexpr T ctz(T x) { return x == 0 ? T(msl::bits_of<T>) : T(__builtin_ctzll(static_cast<__make_unsigned(T)>(x))); } \
  constexpr T reverse_bits(T x) { \
    __make_unsigned(T) result = 0; \
    for (int i = 0; i < msl::bits_of<T>; i++) result |= ((x >> i) & 1ul) << (msl::bits_of<T> - 1 - i); \
    return T(result); \
  } \
  constexpr T rotate(T a, T b) { \
    using U = __make_unsigned(T); \
    const int k = static_cast<int>(b) & (msl::bits_of<T> - 1); \
    return k == 0 ? a : T(U(U(a) << k) | U(U(a) >> (msl::bits_of<T> - k))); \
  } \
  constexpr T extract_bits(T x, uint offset, uint bits) { \
    using U = __make_unsigned(T); \
    return bits == 0 ? T(0) : T(T(U(x) << (msl::bits_of<T> - offset - bits)) >> (msl::bits_of<T> - bits)); \
  } \
  constexpr T insert_bits(T base, T value, uint offset, uint bits) { \
    using U = __make_unsigned(T); \
    const U mask = bits == 0 ? U(0) : U(U(U(~U(0)) >> (msl::bits_of<T> - bits)) << offset); \
    return T((U(base) & U(~mask)) | (U(U(value) << offset) & mask)); \
  }
MSL_INTEGER_FUNCTIONS(char) MSL_INTEGER_FUNCTIONS(uchar) MSL_INTEGER_FUNCTIONS(short) MSL_INTEGER_FUNCTIONS(ushort)
MSL_INTEGER_FUNCTIONS(int) MSL_INTEGER_FUNCTIONS(uint) MSL_INTEGER_FUNCTIONS(long) MSL_INTEGER_FUNCTIONS(ulong)
#undef MSL_INTEGER_FUNCTIONS

constexpr int mul24(int a, int b) {
  return (a << 8 >> 8) * (b << 8 >> 8);
}
constexpr uint mul24(uint a, uint b) {
  return (a & 0xffffff) * (b & 0xffffff);
}
constexpr int mad24(int a, int b, int c) {
  return mul24(a, b) + c;
}
constexpr uint mad24(uint a, uint b, uint c) {
  return mul24(a, b) + c;
}

#define MSL_VECTOR_FUNCTION(name, parameters, arguments)                 \
  template <typename T, int n, typename = enable_if_t<is_integral_v<T>>> \
  constexpr vec<T, n> name parameters {                                  \
    for (int i = 0; i < n; i++) a.d[i] = name arguments;                 \
    return a;                                                            \
  }
#define MSL_V vec<T, n>
MSL_VECTOR_FUNCTION(max, (MSL_V a, MSL_V b), (a.d[i], b.d[i]))
MSL_VECTOR_FUNCTION(min, (MSL_V a, MSL_V b), (a.d[i], b.d[i]))
MSL_VECTOR_FUNCTION(clamp, (MSL_V a, MSL_V low, MSL_V high), (a.d[i], low.d[i], high.d[i]))
MSL_VECTOR_FUNCTION(clamp, (MSL_V a, T low, T high), (a.d[i], low, high))
MSL_VECTOR_FUNCTION(abs, (MSL_V a), (a.d[i]))
MSL_VECTOR_FUNCTION(popcount, (MSL_V a), (a.d[i]))
MSL_VECTOR_FUNCTION(clz, (MSL_V a), (a.d[i]))
MSL_VECTOR_FUNCTION(ctz, (MSL_V a), (a.d[i]))
MSL_VECTOR_FUNCTION(rotate, (MSL_V a, MSL_V b), (a.d[i], b.d[i]))
#undef MSL_V
#undef MSL_VECTOR_FUNCTION

template <typename T>
constexpr T max3(T a, T b, T c) {
  return max(a, max(b, c));
}
template <typename T>
constexpr T min3(T a, T b, T c) {
  return min(a, min(b, c));
}
template <typename T>
constexpr T median3(T a, T b, T c) {
  return max(min(a, b), min(max(a, b), c));
}

template <int n>
constexpr bool any(vec<bool, n> v) {
  bool result = false;
  for (int i = 0; i < n; i++) result |= v.d[i];
  return result;
}
template <int n>
constexpr bool all(vec<bool, n> v) {
  return !any(!v);
}
constexpr bool any(bool b) {
  return b;
}
constexpr bool all(bool b) {
  return b;
}

template <typename T, typename = msl::if_scalar<T>>
constexpr T select(T a, T b, bool second) {
  return second ? b : a;
}
template <typename T, int n>
constexpr vec<T, n> select(vec<T, n> a, vec<T, n> b, bool second) {
  return second ? b : a;
}
template <typename T, int n>
constexpr vec<T, n> select(vec<T, n> a, vec<T, n> b, vec<bool, n> second) {
  for (int i = 0; i < n; i++) a.d[i] = second.d[i] ? b.d[i] : a.d[i];
  return a;
}

#define MSL_CLASSIFICATION(name, value)                                 \
  template <typename T, typename = enable_if_t<is_floating_point_v<T>>> \
  constexpr bool name(T scalar) {                                       \
    const float x = static_cast<float>(scalar);                         \
    return value;                                                       \
  }                                                                     \
  template <typename T, int n>                                          \
  constexpr vec<bool, n> name(vec<T, n> v) {                            \
    vec<bool, n> result{};                                              \
    for (int i = 0; i < n; i++) result.d[i] = name(v.d[i]);             \
    return result;                                                      \
  }
MSL_CLASSIFICATION(isnan, __builtin_isnan(x))
MSL_CLASSIFICATION(isinf, __builtin_isinf(x))
MSL_CLASSIFICATION(isfinite, __builtin_isfinite(x))
MSL_CLASSIFICATION(signbit, __builtin_signbit(x))
#undef MSL_CLASSIFICATION
template <typename T, typename = enable_if_t<is_floating_point_v<T>>>
constexpr bool isnormal(T x) {
  return isfinite(x) && (x < T(0) ? -x : x) >= numeric_limits<T>::min();
}
template <typename T, typename = enable_if_t<is_floating_point_v<T>>>
constexpr bool isunordered(T a, T b) {
  return isnan(a) || isnan(b);
}
template <typename T, typename = enable_if_t<is_floating_point_v<T>>>
constexpr bool isordered(T a, T b) {
  return !isunordered(a, b);
}

}  // namespace metal
