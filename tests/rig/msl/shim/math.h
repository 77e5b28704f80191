// <metal_math>, <metal_common>, <metal_geometric>: floating-point functions. A half goes through float and is rounded
// once. precise:: and fast:: are the same here; how far fast:: may be off is Apple's affair and not shown.
#pragma once
#include "vector.h"

namespace msl {
constexpr double pi = 3.14159265358979323846;
}

namespace metal {
inline namespace precise {

#define MSL_FUNCTION_1(name, value)                                            \
  inline float name(float x) { return value; }                                 \
  inline half name(half x) { return half(name(float(x))); }                    \
  template <typename T, int n, typename = enable_if_t<is_floating_point_v<T>>> \
  inline vec<T, n> name(vec<T, n> x) {                                         \
    for (int i = 0; i < n; i++) x.d[i] = name(x.d[i]);                         \
    return x;                                                                  \
  }
#define MSL_FUNCTION_2(name, value)                                            \
  inline float name(float x, float y) { return value; }                        \
  inline half name(half x, half y) { return half(name(float(x), float(y))); }  \
  template <typename T, int n, typename = enable_if_t<is_floating_point_v<T>>> \
  inline vec<T, n> name(vec<T, n> x, vec<T, n> y) {                            \
    for (int i = 0; i < n; i++) x.d[i] = name(x.d[i], y.d[i]);                 \
    return x;                                                                  \
  }                                                                            \
  template <typename T, int n, typename = enable_if_t<is_floating_point_v<T>>> \
  inline vec<T, n> name(vec<T, n> x, make_scalar_t<vec<T, n>> y) {             \
    return name(x, vec<T, n>(y));                                              \
  }
#define MSL_FUNCTION_3(name, value)                                                             \
  inline float name(float x, float y, float z) { return value; }                                \
  inline half name(half x, half y, half z) { return half(name(float(x), float(y), float(z))); } \
  template <typename T, int n, typename = enable_if_t<is_floating_point_v<T>>>                  \
  inline vec<T, n> name(vec<T, n> x, vec<T, n> y, vec<T, n> z) {                                \
    for (int i = 0; i < n; i++) x.d[i] = name(x.d[i], y.d[i], z.d[i]);                          \
    return x;                                                                                   \
  }                                                                                             \
  template <typename T, int n, typename = enable_if_t<is_floating_point_v<T>>>                  \
  inline vec<T, n> name(vec<T, n> x, make_scalar_t<vec<T, n>> y, make_scalar_t<vec<T, n>> z) {  \
    return name(x, vec<T, n>(y), vec<T, n>(z));                                                 \
  }

MSL_FUNCTION_1(acos, __builtin_acosf(x))
MSL_FUNCTION_1(acosh, __builtin_acoshf(x))
MSL_FUNCTION_1(asin, __builtin_asinf(x))
MSL_FUNCTION_1(asinh, __builtin_asinhf(x))
MSL_FUNCTION_1(atan, __builtin_atanf(x))
MSL_FUNCTION_1(atanh, __builtin_atanhf(x))
MSL_FUNCTION_1(ceil, __builtin_ceilf(x))
MSL_FUNCTION_1(cos, __builtin_cosf(x))
MSL_FUNCTION_1(cosh, __builtin_coshf(x))
MSL_FUNCTION_1(cospi, static_cast<float>(__builtin_cos(msl::pi * x)))
MSL_FUNCTION_1(exp, __builtin_expf(x))
MSL_FUNCTION_1(exp2, __builtin_exp2f(x))
MSL_FUNCTION_1(exp10, __builtin_powf(10.0f, x))
MSL_FUNCTION_1(fabs, __builtin_fabsf(x))
MSL_FUNCTION_1(abs, __builtin_fabsf(x))
MSL_FUNCTION_1(floor, __builtin_floorf(x))
MSL_FUNCTION_1(fract, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f))
MSL_FUNCTION_1(log, __builtin_logf(x))
MSL_FUNCTION_1(log2, __builtin_log2f(x))
MSL_FUNCTION_1(log10, __builtin_log10f(x))
MSL_FUNCTION_1(rint, __builtin_rintf(x))
MSL_FUNCTION_1(round, __builtin_roundf(x))
MSL_FUNCTION_1(rsqrt, 1.0f / __builtin_sqrtf(x))
MSL_FUNCTION_1(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))
MSL_FUNCTION_1(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : x == 0 ? x : 0.0f)
MSL_FUNCTION_1(sin, __builtin_sinf(x))
MSL_FUNCTION_1(sinh, __builtin_sinhf(x))
MSL_FUNCTION_1(sinpi, static_cast<float>(__builtin_sin(msl::pi * x)))
MSL_FUNCTION_1(sqrt, __builtin_sqrtf(x))
MSL_FUNCTION_1(tan, __builtin_tanf(x))
MSL_FUNCTION_1(tanh, __builtin_tanhf(x))
MSL_FUNCTION_1(tanpi, static_cast<float>(__builtin_tan(msl::pi * x)))
MSL_FUNCTION_1(trunc, __builtin_truncf(x))

MSL_FUNCTION_2(atan2, __builtin_atan2f(x, y))
MSL_FUNCTION_2(copysign, __builtin_copysignf(x, y))
MSL_FUNCTION_2(divide, x / y)
MSL_FUNCTION_2(fdim, __builtin_fdimf(x, y))
MSL_FUNCTION_2(fmax, __builtin_fmaxf(x, y))
MSL_FUNCTION_2(fmin, __builtin_fminf(x, y))
MSL_FUNCTION_2(max, __builtin_fmaxf(x, y))
MSL_FUNCTION_2(min, __builtin_fminf(x, y))
MSL_FUNCTION_2(fmod, __builtin_fmodf(x, y))
MSL_FUNCTION_2(nextafter, __builtin_nextafterf(x, y))
MSL_FUNCTION_2(pow, __builtin_powf(x, y))
MSL_FUNCTION_2(powr, __builtin_powf(x, y))
MSL_FUNCTION_2(step, y < x ? 0.0f : 1.0f)

MSL_FUNCTION_3(clamp, __builtin_fminf(__builtin_fmaxf(x, y), z))
MSL_FUNCTION_3(fmax3, fmax(x, fmax(y, z)))
MSL_FUNCTION_3(fmin3, fmin(x, fmin(y, z)))
MSL_FUNCTION_3(fmedian3, fmax(fmin(x, y), fmin(fmax(x, y), z)))
MSL_FUNCTION_3(mix, x + (y - x) * z)
MSL_FUNCTION_3(smoothstep, (z = saturate((z - x) / (y - x)), z * z * (3.0f - 2.0f * z)))
#undef MSL_FUNCTION_1
#undef MSL_FUNCTION_2
#undef MSL_FUNCTION_3

// Rounded once; also a constant expression.
constexpr float fma(float a, float b, float c) {
  return __builtin_is_constant_evaluated() ? float(double(a) * b + c) : __builtin_fmaf(a, b, c);
}
constexpr half fma(half a, half b, half c) {
  return half(double(a) * double(b) + double(c));
}
template <typename T, int n>
constexpr vec<T, n> fma(vec<T, n> a, vec<T, n> b, vec<T, n> c) {
  for (int i = 0; i < n; i++) a.d[i] = fma(a.d[i], b.d[i], c.d[i]);
  return a;
}

inline float ldexp(float x, int k) {
  return __builtin_ldexpf(x, k);
}
inline float frexp(float x, int& exponent) {
  return __builtin_frexpf(x, &exponent);
}
inline int ilogb(float x) {
  return __builtin_ilogbf(x);
}
inline float modf(float x, float& whole) {
  whole = __builtin_truncf(x);
  return __builtin_copysignf(__builtin_isinf(x) ? 0.0f : x - whole, x);
}
inline float sincos(float x, float& cosine) {
  cosine = cos(x);
  return sin(x);
}

}  // namespace precise

namespace fast {
using namespace precise;
}

template <typename T, int n>
constexpr T dot(vec<T, n> a, vec<T, n> b) {
  T sum(0);
  for (int i = 0; i < n; i++) sum += a.d[i] * b.d[i];
  return sum;
}
template <typename T, int n>
T length_squared(vec<T, n> v) {
  return dot(v, v);
}
template <typename T, int n>
T length(vec<T, n> v) {
  return sqrt(dot(v, v));
}
template <typename T, int n>
T distance(vec<T, n> a, vec<T, n> b) {
  return length(a - b);
}
template <typename T, int n>
vec<T, n> normalize(vec<T, n> v) {
  return v * rsqrt(dot(v, v));
}
template <typename T>
vec<T, 3> cross(vec<T, 3> a, vec<T, 3> b) {
  return vec<T, 3>(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x);
}

}  // namespace metal
