// How a kernel function is called by the executor: parameters from its bindings, function constants, registration.
#pragma once
#include "simdgroup_matrix.h"

namespace msl {

template <typename A>
struct Argument {
  static A get(const int* binding) {
    using T = __remove_cv(A);
    using S = metal::make_scalar_t<T>;
    static_assert(__is_same(S, ushort) || __is_same(S, uint), "a built-in parameter is a ushort, a uint or a vector of them");
    unsigned found[3];
    msl_builtin(binding[1], found);
    if constexpr (metal::is_vector_v<T>) {
      T value;
      for (int i = 0; i < VectorTraits<T>::size; i++) value[i] = static_cast<S>(found[i]);
      return value;
    } else {
      return static_cast<T>(found[0]);
    }
  }
};

inline void* bound_memory(const int* binding) {
  if (binding[0] == bound_nothing) return nullptr;
  return binding[0] == bound_threadgroup ? msl_threadgroup_buffer(binding[1]) : msl_buffer(binding[1]);
}
template <typename T>
struct Argument<T*> {
  static T* get(const int* binding) { return static_cast<T*>(bound_memory(binding)); }
};
// An absent reference gets memory of its own: compilers load through references before it is known that they are used.
alignas(64) inline char absent_memory[512];
template <typename T>
struct Argument<T&> {
  static T& get(const int* binding) {
    void* memory = binding[0] == bound_nothing ? absent_memory : bound_memory(binding);
    if (!memory) msl_missing_buffer(binding[1]);
    return *static_cast<T*>(memory);
  }
};

template <typename, int... i>
struct Indices {};
template <typename Function, Function function>
struct Thunk;
template <typename... A, void (*function)(A...)>
struct Thunk<void (*)(A...), function> {
  template <int... i>
  static void call(const int* bindings, Indices<int, i...>) {
    function(Argument<A>::get(bindings + 2 * i)...);
  }
  static void run(const int* bindings) { call(bindings, __make_integer_seq<Indices, int, sizeof...(A)>()); }
};

struct Register {
  Register(const char* name, void (*run)(const int*), const int* bindings, int parameters, const char*, int) {
    msl_register(name, run, bindings, parameters);
  }
};

template <typename T>
T function_constant(const char* name, long index) {
  T value;
  msl_function_constant(name, index, &value, sizeof value);
  return value;
}

}  // namespace msl

#define is_function_constant_defined(name) (::msl_function_constant_defined(#name))
