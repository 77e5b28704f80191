// Metal's types and the part of its mathematics that CUDA C++ does not have under the same name.
#ifndef INT4KV_CUDA_METAL_TYPES_H
#define INT4KV_CUDA_METAL_TYPES_H

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;

namespace metal {

// IEEE fp16, rounded to nearest; arithmetic is fp32's.
struct half {
  ushort bits;

  half() = default;
  explicit half(float x) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  }
  operator float() const {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
  }
};

struct bfloat {
  ushort bits;

  bfloat() = default;
  explicit bfloat(float x) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  }
  operator float() const {
    return __uint_as_float(uint(bits) << 16);
  }
};

template <typename T, int N>
struct vec;

template <typename T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;

  vec() = default;
  vec(T x_, T y_) : x(x_), y(y_) {}
  explicit vec(T all) : x(all), y(all) {}
  T& operator[](int i) {
    return i == 0 ? x : y;
  }
};

template <typename T>
struct vec<T, 3> {
  T x, y, z;
};

template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;

  T& operator[](int i) {
    return i == 0 ? x : i == 1 ? y : i == 2 ? z : w;
  }
};

template <typename To, typename From>
inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type between types of one size");
  return __builtin_bit_cast(To, from);
}

inline vec<half, 2> fma(vec<half, 2> a, vec<half, 2> b, vec<half, 2> c) {
  uint found;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(found) : "r"(as_type<uint>(a)), "r"(as_type<uint>(b)), "r"(as_type<uint>(c)));
  return as_type<vec<half, 2>>(found);
}

inline vec<half, 2> operator*(vec<half, 2> a, vec<half, 2> b) {
  uint found;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(found) : "r"(as_type<uint>(a)), "r"(as_type<uint>(b)));
  return as_type<vec<half, 2>>(found);
}

inline vec<half, 2> largest_pair(vec<half, 2> a, vec<half, 2> b) {
  uint found;
  asm("max.f16x2 %0, %1, %2;" : "=r"(found) : "r"(as_type<uint>(a)), "r"(as_type<uint>(b)));
  return as_type<vec<half, 2>>(found);
}

inline vec<half, 2> half_pair(float x, float y) {
  uint found;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(y), "f"(x));
  return as_type<vec<half, 2>>(found);
}

template <typename T>
inline T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}

template <typename T>
inline vec<T, 2> operator&(vec<T, 2> a, vec<T, 2> b) {
  return {T(a.x & b.x), T(a.y & b.y)};
}
template <typename T>
inline vec<T, 2> operator|(vec<T, 2> a, vec<T, 2> b) {
  return {T(a.x | b.x), T(a.y | b.y)};
}

namespace fast {
inline float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
} // namespace fast

namespace precise {
inline float tanh(float x) {
  return tanhf(x);
}
} // namespace precise

} // namespace metal

// CUDA's own vectors have these names and no constructors.
#define half2 metal::vec<metal::half, 2>
#define half4 metal::vec<metal::half, 4>
#define ushort2 metal::vec<ushort, 2>
#define float2 metal::vec<float, 2>
#define float4 metal::vec<float, 4>
#define uint2 metal::vec<uint, 2>
#define uint3 metal::vec<uint, 3>
#define uint4 metal::vec<uint, 4>

#endif
