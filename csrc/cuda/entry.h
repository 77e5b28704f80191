// A kernel of csrc/metal as a __global__ function, which metal.h's contract describes: the counterpart of csrc/metal/entry.h.
#ifndef INT4KV_CUDA_ENTRY_H
#define INT4KV_CUDA_ENTRY_H

#include "../metal/parameters.h"

#define INT4KV_THREADGROUP(type, name, count) __shared__ alignas(128) type name[count]
// In a large block, all that a block may have: metal.h says how it is launched.
#if INT4KV_SIMDGROUPS > 4
#define INT4KV_SCRATCH(type, name, count) extern __shared__ __attribute__((aligned(128))) type name[]
#else
#define INT4KV_SCRATCH(type, name, count) INT4KV_THREADGROUP(type, name, count)
#endif
#define INT4KV_SELDOM __noinline__  // its code stays out of the loop, and of the way of the instruction cache
#define INT4KV_FUNCTION_CONSTANT(name, index) constexpr uint name = function_constants[index]

// A kernel is written when INT4KV_WANTS_<name> is defined, as a comma: the comma moves INT4KV_WRITE_ENTRY to the second place.
#define INT4KV_ENTRY(name, simdgroups, ...) \
  INT4KV_CHOOSE(INT4KV_WANTS_##name INT4KV_WRITE_ENTRY, INT4KV_SKIP_ENTRY, )(name, simdgroups, __VA_ARGS__)
#define INT4KV_CHOOSE(...) INT4KV_SECOND(__VA_ARGS__)
#define INT4KV_SECOND(first, second, ...) second
#define INT4KV_SKIP_ENTRY(...)
#define INT4KV_WRITE_ENTRY(name, simdgroups, ...)                                                                     \
  extern "C" __global__ void __launch_bounds__(32 * simdgroups, INT4KV_CHOOSE(INT4KV_BLOCKS_##name, INT4KV_BLOCKS(simdgroups), )) name( \
      const __grid_constant__ Arguments<decltype(__VA_ARGS__)>::Buffers buffers,                                      \
      const __grid_constant__ Arguments<decltype(__VA_ARGS__)>::Parameters p) {                                       \
    run(__VA_ARGS__, buffers, p, buffers.order);                                                                      \
  }

// Blocks that a multiprocessor holds at once: a large one alone; with 16 simdgroups a lane has 128 registers, with merge's 32 it has 64.
// Of head_dim 256 attend_matrix's sums alone are 64.
#if INT4KV_SIMDGROUPS > 4
#define INT4KV_BLOCKS(simdgroups) 1
#else
#define INT4KV_BLOCKS(simdgroups) (simdgroups) > 8 ? 1 : ((simdgroups) > INT4KV_SIMDGROUPS ? 32 : 16) / (simdgroups)
#define INT4KV_BLOCKS_attend_matrix_256 , 3
#endif

inline void ask_for(const void* at) {
  asm volatile("prefetch.global.L2 [%0];" : : "l"(at));
}

constexpr int kMergeRound = INT4KV_MERGE_SIMDGROUPS > 8 ? 128 : 32;

// x in registers, not computed again where it is used.
template <typename T>
inline T* kept(T* x) {
  asm volatile("" : "+l"(x));
  __builtin_assume(__isGlobal(x));
  return x;
}

constexpr uint function_constants[] = {INT4KV_FUNCTION_CONSTANTS};

template <int... i>
struct Order {};

template <int count, int... i>
struct OrderOf : OrderOf<count - 1, count - 1, i...> {};
template <int... i>
struct OrderOf<0, i...> {
  using Type = Order<i...>;
};

template <int count>
struct BuffersOf {
  void* at[count];
  static constexpr typename OrderOf<count>::Type order = {};
};

// The arguments of a kernel of csrc/metal: pointers, the parameters, then the position in the grid, the lane and, if it asks, the
// simdgroup.
template <int pointers, typename... A>
struct Split;
template <int pointers, typename T, typename... A>
struct Split<pointers, T*, A...> : Split<pointers + 1, A...> {};
template <int pointers, typename P, typename... A>
struct Split<pointers, const P&, A...> {
  using Buffers = BuffersOf<pointers>;
  using Parameters = P;
  static constexpr int indices = sizeof...(A);
};
template <typename Function>
struct Arguments;
template <typename... A>
struct Arguments<void(A...)> : Split<0, A...> {};
template <typename... A>
struct Arguments<void (*)(A...)> : Split<0, A...> {};

struct PositionInGrid {
  operator uint() const {
    return blockIdx.x;
  }
  operator uint3() const {
    return {blockIdx.x, blockIdx.y, blockIdx.z};
  }
};

struct AnyPointer {
  void* at;

  template <typename T>
  operator T*() const {
    return static_cast<T*>(at);
  }
};

// A kernel may be launched while the one before it still runs, and lets the next one come as soon as it runs itself.
inline void let_next_kernel_come() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}

inline void await_tensors() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

// The simdgroup's index comes from a shuffle: so the compiler knows it to be the same for a whole warp.
template <typename Function, typename Buffers, typename P, int... i>
inline void run(Function function, const Buffers& buffers, const P& p, Order<i...>) {
  let_next_kernel_come();
  const uint lane = threadIdx.x % 32, simdgroup = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if constexpr (Arguments<Function>::indices == 2) {
    function(AnyPointer{buffers.at[i]}..., p, PositionInGrid(), lane);
  } else {
    function(AnyPointer{buffers.at[i]}..., p, PositionInGrid(), lane, simdgroup);
  }
}

#endif
