// Atomic functions: objects in device or threadgroup memory.
#pragma once
#include "lint_scalars.h"

namespace metal {

enum class mem_flags;
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };
enum memory_order { memory_order_relaxed, memory_order_seq_cst };
template <typename T>
struct atomic {
  T value;
};
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_bool = atomic<bool>;
using atomic_float = atomic<float>;
using atomic_ulong = atomic<ulong>;

#define METAL_FETCH(name, space) \
  template <typename T, typename S> \
  T atomic_fetch_##name##_explicit(volatile space atomic<T>*, S, memory_order);
#define METAL_ATOMICS(space)                                                                          \
  template <typename T>                                                                               \
  T atomic_load_explicit(const volatile space atomic<T>*, memory_order);                              \
  template <typename T, typename S>                                                                   \
  void atomic_store_explicit(volatile space atomic<T>*, S, memory_order);                             \
  template <typename T, typename S>                                                                   \
  T atomic_exchange_explicit(volatile space atomic<T>*, S, memory_order);                             \
  template <typename T, typename S>                                                                   \
  bool atomic_compare_exchange_weak_explicit(volatile space atomic<T>*, __private T*, S, memory_order, memory_order); \
  METAL_FETCH(add, space) METAL_FETCH(sub, space) METAL_FETCH(min, space) METAL_FETCH(max, space)     \
  METAL_FETCH(and, space) METAL_FETCH(or, space) METAL_FETCH(xor, space)
void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device);
METAL_ATOMICS(__global)
METAL_ATOMICS(__local)

}  // namespace metal
