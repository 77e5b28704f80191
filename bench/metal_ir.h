// What the kernels use of Metal's library, in clang's C++ for OpenCL: its address spaces are kept apart, as by a GPU's compiler.
// Arithmetic is the compiler's own; what only a simdgroup can do is a call that llvm_ir.py counts by name.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable

#define device __global
#define threadgroup __local
#define constant __constant
#define thread __private

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using bfloat = __bf16;

// The result depends on the arguments of all lanes alone: of equal calls one is kept, of unused ones none.
#define METAL_COLLECTIVE extern "C" __attribute__((const, convergent))

namespace metal {

template <typename T, int N>
using vec = T __attribute__((ext_vector_type(N)));
using half2 = vec<half, 2>;
using half4 = vec<half, 4>;
using ushort2 = vec<ushort, 2>;
using float2 = vec<float, 2>;
using uint2 = vec<uint, 2>;
using uint3 = vec<uint, 3>;
using uint4 = vec<uint, 4>;

// A vector from its elements, or from one for all: OpenCL spells it as a cast.
#define half2(...) ((half2)(__VA_ARGS__))
#define float2(...) ((float2)(__VA_ARGS__))
#define ushort2(...) ((ushort2)(__VA_ARGS__))

template <typename To, typename From>
inline To as_type(From x) {
  return __builtin_astype(x, To);
}

template <typename T>
struct same {
  using type = T;
};

template <typename T>
inline T max(T a, typename same<T>::type b) {
  return __builtin_elementwise_max(a, b);
}
template <typename T>
inline T min(T a, typename same<T>::type b) {
  return __builtin_elementwise_min(a, b);
}
template <typename T>
inline T clamp(T x, typename same<T>::type low, typename same<T>::type high) {
  return min(max(x, low), high);
}
template <typename T>
inline T fma(T a, typename same<T>::type b, typename same<T>::type c) {
  return __builtin_elementwise_fma(a, b, c);
}
inline float floor(float x) {
  return __builtin_elementwise_floor(x);
}
inline float fabs(float x) {
  return __builtin_elementwise_abs(x);
}
inline bool isnan(float x) {
  return __builtin_isnan(x);
}
inline bool isfinite(float x) {
  return __builtin_isfinite(x);
}

METAL_COLLECTIVE float metal_tanh(float x);
namespace precise {
inline float tanh(float x) {
  return metal_tanh(x);
}
} // namespace precise
namespace fast {
inline float exp2(float x) {
  return __builtin_elementwise_exp2(x);
}
} // namespace fast

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
extern "C" __attribute__((convergent)) void metal_barrier();
inline void threadgroup_barrier(mem_flags) {
  metal_barrier();
}
inline void simdgroup_barrier(mem_flags) {
  metal_barrier();
}

METAL_COLLECTIVE uint metal_shuffle(uint x, uint lane);
METAL_COLLECTIVE uint metal_shuffle_xor(uint x, uint mask);
METAL_COLLECTIVE uint metal_reduce_max(uint x);
METAL_COLLECTIVE uint metal_reduce_min(uint x);
METAL_COLLECTIVE uint metal_reduce_sum(uint x);
METAL_COLLECTIVE bool metal_reduce_any(bool x);
METAL_COLLECTIVE bool metal_reduce_all(bool x);
template <typename T>
inline T simd_shuffle(T x, ushort lane) {
  return as_type<T>(metal_shuffle(as_type<uint>(x), lane));
}
template <typename T>
inline T simd_shuffle_xor(T x, ushort mask) {
  return as_type<T>(metal_shuffle_xor(as_type<uint>(x), mask));
}
template <typename T>
inline T simd_max(T x) {
  return as_type<T>(metal_reduce_max(as_type<uint>(x)));
}
template <typename T>
inline T simd_min(T x) {
  return as_type<T>(metal_reduce_min(as_type<uint>(x)));
}
template <typename T>
inline T simd_sum(T x) {
  return as_type<T>(metal_reduce_sum(as_type<uint>(x)));
}
inline bool simd_any(bool x) {
  return metal_reduce_any(x);
}
inline bool simd_all(bool x) {
  return metal_reduce_all(x);
}

// The two elements of an 8x8 matrix that a lane holds.
template <typename T, int columns, int rows>
struct simdgroup_matrix {
  __private vec<T, 2>& thread_elements() __private {
    return elements;
  }
  vec<T, 2> elements;
};
METAL_COLLECTIVE float2 metal_matrix_multiply(float2 a, float2 b, float2 c);
typedef simdgroup_matrix<float, 8, 8> Matrix;
inline void simdgroup_multiply_accumulate(__private Matrix& d, Matrix a, Matrix b, Matrix c) {
  d.elements = metal_matrix_multiply(a.elements, b.elements, c.elements);
}

} // namespace metal

extern "C" __attribute__((malloc)) threadgroup void* metal_threadgroup_variable(ulong bytes);

// A kernel's function type gives a Case its arguments: Case::call is compiled as if no other call were possible.
template <typename Function, typename Case>
struct Entry;
template <typename... A, typename Case>
struct Entry<void(A...), Case> {
  static void run(A... a) {
    (Case::given(a), ...);
    Case::template call<A...>(a...);
  }
};

// Everything is inlined into run before anything else is done: the compiler sees one use of the kernel and no other.
#pragma clang attribute push(__attribute__((always_inline)), apply_to = function)
