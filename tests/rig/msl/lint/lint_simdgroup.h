// Barriers, functions of simdgroups and quadgroups, and simdgroup matrices.
#pragma once
#include "lint_vectors.h"

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

#define METAL_REDUCTION(name) \
  template <typename T>       \
  T simd_##name(T);           \
  template <typename T>       \
  T quad_##name(T);
METAL_REDUCTION(sum) METAL_REDUCTION(product) METAL_REDUCTION(min) METAL_REDUCTION(max) METAL_REDUCTION(and)
METAL_REDUCTION(or) METAL_REDUCTION(xor) METAL_REDUCTION(prefix_inclusive_sum) METAL_REDUCTION(prefix_exclusive_sum)
METAL_REDUCTION(prefix_inclusive_product) METAL_REDUCTION(prefix_exclusive_product) METAL_REDUCTION(broadcast_first)

#define METAL_SHUFFLE(name) \
  template <typename T>     \
  T simd_##name(T, ushort); \
  template <typename T>     \
  T quad_##name(T, ushort);
METAL_SHUFFLE(shuffle) METAL_SHUFFLE(shuffle_xor) METAL_SHUFFLE(shuffle_up) METAL_SHUFFLE(shuffle_down)
METAL_SHUFFLE(shuffle_rotate_up) METAL_SHUFFLE(shuffle_rotate_down) METAL_SHUFFLE(broadcast)
#define METAL_FILLING_SHUFFLE(name)                               \
  template <typename T>                                           \
  T name(T, T filling, ushort);                                   \
  template <typename T>                                           \
  T name(T, T filling, ushort, ushort modulo);
METAL_FILLING_SHUFFLE(simd_shuffle_and_fill_up) METAL_FILLING_SHUFFLE(simd_shuffle_and_fill_down)
METAL_FILLING_SHUFFLE(quad_shuffle_and_fill_up) METAL_FILLING_SHUFFLE(quad_shuffle_and_fill_down)

bool simd_all(bool);
bool simd_any(bool);
bool simd_is_first();
bool quad_all(bool);
bool quad_any(bool);
bool quad_is_first();
struct simd_vote {
  using vote_t = ulong;
  explicit simd_vote(vote_t);
  explicit operator vote_t() const __generic;
  bool all() const __generic;
  bool any() const __generic;
};
simd_vote simd_ballot(bool);
simd_vote simd_active_threads_mask();

template <typename T, int columns, int rows = columns>
struct simdgroup_matrix {
  using storage_type = vec<T, 2>;
  simdgroup_matrix();
  template <typename S>
  explicit simdgroup_matrix(S diagonal);
  __private storage_type& thread_elements() __private;
  const __private storage_type& thread_elements() const __private;
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;

template <typename T, int columns, int rows>
simdgroup_matrix<T, columns, rows> make_filled_simdgroup_matrix(T value);
#define METAL_MATRIX_MEMORY(space)                                                                             \
  template <typename T>                                                                                        \
  void simdgroup_load(__private simdgroup_matrix<T, 8, 8>&, const space T*, ulong row = 8,                     \
                      ulong2 origin = ulong2(0), bool transpose = false);                                      \
  template <typename T>                                                                                        \
  void simdgroup_store(simdgroup_matrix<T, 8, 8>, space T*, ulong row = 8, ulong2 origin = ulong2(0),          \
                       bool transpose = false);
METAL_MATRIX_MEMORY(__global)
METAL_MATRIX_MEMORY(__local)
template <typename D, typename A, typename B>
void simdgroup_multiply(__private simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>, simdgroup_matrix<B, 8, 8>);
template <typename D, typename A, typename B, typename C>
void simdgroup_multiply_accumulate(__private simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>,
                                   simdgroup_matrix<B, 8, 8>, simdgroup_matrix<C, 8, 8>);

}  // namespace metal
