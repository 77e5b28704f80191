// CUDA C++ for clang on the CPU: qualifiers, built-in variables and functions. A thread is a fiber of the executor.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../msl/shim/runtime.h"
#include "ptx.h"

#define __CUDA_ARCH__ 900
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __noinline__ __attribute__((noinline))

// As msl_builtin numbers them.
struct BuiltIn {
  unsigned x, y, z;

  explicit BuiltIn(int number) {
    unsigned found[3] = {};
    msl_builtin(number, found);
    x = found[0], y = found[1], z = found[2];
  }
};
#define blockIdx BuiltIn(1)
#define threadIdx BuiltIn(8)

using std::fabs;
using std::floor;
using std::fma;
using std::isfinite;

template <typename A, typename B>
std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(a) > T(b) || T(b) != T(b) ? T(a) : T(b);
}
template <typename A, typename B>
std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(a) < T(b) || T(b) != T(b) ? T(a) : T(b);
}

inline float __uint_as_float(unsigned x) {
  return __builtin_bit_cast(float, x);
}
constexpr bool __isGlobal(const void*) {
  return true;
}
inline uint64_t __cvta_generic_to_shared(const void* x) {
  return ptx::shared_address(x);
}

inline void __syncthreads(MSL_SITE("__syncthreads")) {
  const msl::Rendezvous barrier = {site, msl::threadgroup_wide, true, false, nullptr, nullptr, nullptr};
  msl_meet(&barrier);
}
inline void __syncwarp(MSL_SITE("__syncwarp")) {
  const msl::Rendezvous barrier = {site, msl::simdgroup_wide, true, false, nullptr, nullptr, nullptr};
  msl_meet(&barrier);
}

template <typename T>
T __shfl_sync(unsigned, T x, unsigned lane, MSL_SITE("__shfl_sync")) {
  return ptx::from_lane(x, lane, site);
}
template <typename T>
T __shfl_xor_sync(unsigned, T x, unsigned mask, MSL_SITE("__shfl_xor_sync")) {
  return ptx::from_lane(x, msl_lane() ^ mask, site);
}
inline unsigned __reduce_max_sync(unsigned, unsigned x, MSL_SITE("__reduce_max_sync")) {
  for (unsigned apart = 16; apart > 0; apart /= 2) x = max(x, ptx::from_lane(x, msl_lane() ^ apart, site));
  return x;
}
inline int __reduce_add_sync(unsigned, int x, MSL_SITE("__reduce_add_sync")) {
  for (unsigned apart = 16; apart > 0; apart /= 2) x += ptx::from_lane(x, msl_lane() ^ apart, site);
  return x;
}
inline bool __any_sync(unsigned, bool x, MSL_SITE("__any_sync")) {
  return ptx::votes(x, site) != 0;
}
inline bool __all_sync(unsigned, bool x, MSL_SITE("__all_sync")) {
  return ptx::votes(x, site) == ~0u;
}
