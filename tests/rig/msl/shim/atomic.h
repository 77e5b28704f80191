// <metal_atomic>: relaxed atomics on device and threadgroup memory.
#pragma once
#include "simdgroup.h"

namespace metal {

enum memory_order { memory_order_relaxed };
enum thread_scope {
  thread_scope_thread,
  thread_scope_simdgroup,
  thread_scope_threadgroup,
  thread_scope_device,
  thread_scope_system
};

template <typename T>
struct atomic {
  static_assert(disjunction<is_same<T, int>, is_same<T, uint>, is_same<T, float>, is_same<T, bool>, is_same<T, ulong>>(),
                "atomic of int, uint, float, bool or ulong");
  T value;
};
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_float = atomic<float>;
using atomic_bool = atomic<bool>;
using atomic_ulong = atomic<ulong>;

template <typename T>
T atomic_load_explicit(const volatile atomic<T>* object, memory_order) {
  T value;
  __atomic_load(&object->value, &value, __ATOMIC_RELAXED);
  return value;
}
template <typename T>
void atomic_store_explicit(volatile atomic<T>* object, decltype(T()) value, memory_order) {
  __atomic_store(&object->value, &value, __ATOMIC_RELAXED);
}
template <typename T>
T atomic_exchange_explicit(volatile atomic<T>* object, decltype(T()) value, memory_order) {
  T old;
  __atomic_exchange(&object->value, &value, &old, __ATOMIC_RELAXED);
  return old;
}
// Weak ones may fail on a GPU without cause; here they do not.
template <typename T>
bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* object, T* expected, decltype(T()) desired, memory_order,
                                           memory_order) {
  return __atomic_compare_exchange(&object->value, expected, &desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

}  // namespace metal

namespace msl {

template <typename T, typename Change>
T atomic_change(volatile atomic<T>* object, Change change) {
  T old = atomic_load_explicit(object, memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(object, &old, change(old), memory_order_relaxed, memory_order_relaxed)) {
  }
  return old;
}

}  // namespace msl

namespace metal {

#define MSL_FETCH(name, types, changed)                                                               \
  template <typename T, typename = enable_if_t<types<T>>>                                             \
  T atomic_fetch_##name##_explicit(volatile atomic<T>* object, decltype(T()) operand, memory_order) { \
    return msl::atomic_change(object, [operand](T old) { return static_cast<T>(changed); });          \
  }
MSL_FETCH(add, is_arithmetic_v, old + operand)
MSL_FETCH(sub, is_arithmetic_v, old - operand)
MSL_FETCH(max, is_integral_v, max(old, operand))
MSL_FETCH(min, is_integral_v, min(old, operand))
MSL_FETCH(and, is_integral_v, old & operand)
MSL_FETCH(or, is_integral_v, old | operand)
MSL_FETCH(xor, is_integral_v, old ^ operand)
#undef MSL_FETCH

}  // namespace metal
