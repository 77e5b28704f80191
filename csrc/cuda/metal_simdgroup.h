// What the lanes of a simdgroup, which is a warp, and the simdgroups of a threadgroup, which is a block, do together.
#ifndef INT4KV_CUDA_METAL_SIMDGROUP_H
#define INT4KV_CUDA_METAL_SIMDGROUP_H

namespace metal {

enum class mem_flags { mem_threadgroup };

inline void threadgroup_barrier(mem_flags) {
  __syncthreads();
}
inline void simdgroup_barrier(mem_flags) {
  __syncwarp();
}

template <typename T>
inline T simd_shuffle(T x, ushort lane) {
  return __shfl_sync(~0u, x, lane);
}
template <typename T>
inline T simd_shuffle_xor(T x, ushort mask) {
  return __shfl_xor_sync(~0u, x, mask);
}
inline bool simd_any(bool x) {
  return __any_sync(~0u, x);
}
inline bool simd_all(bool x) {
  return __all_sync(~0u, x);
}

template <typename T>
inline T simd_max(T x) {
  for (int apart = 16; apart > 0; apart /= 2) x = max(x, simd_shuffle_xor(x, apart));
  return x;
}
inline uint simd_max(uint x) {
  return __reduce_max_sync(~0u, x);
}
template <typename T>
inline T simd_min(T x) {
  for (int apart = 16; apart > 0; apart /= 2) x = min(x, simd_shuffle_xor(x, apart));
  return x;
}
template <typename T>
inline T simd_sum(T x) {
  for (int apart = 16; apart > 0; apart /= 2) x += simd_shuffle_xor(x, apart);
  return x;
}
inline int simd_sum(int x) {
  return __reduce_add_sync(~0u, x);
}

} // namespace metal

#endif
