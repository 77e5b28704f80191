// Where Metal and CUDA C++ spell one thing differently; csrc/cuda/entry.h is the counterpart.
#ifndef INT4KV_METAL_ENTRY_H
#define INT4KV_METAL_ENTRY_H

// A kernel by the name that the host looks it up by: an instance of a template, for threadgroups of so many simdgroups.
#define INT4KV_ENTRY(name, simdgroups, ...) template [[host_name(#name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;

// `count` elements that the threads of a threadgroup share.
#define INT4KV_THREADGROUP(type, name, count) threadgroup type name[count]

// The same where a GPU may give a kernel more than others.
#define INT4KV_SCRATCH(type, name, count) INT4KV_THREADGROUP(type, name, count)

// A number that a pipeline is compiled for.
#define INT4KV_FUNCTION_CONSTANT(name, index) constant uint name [[function_constant(index)]]

// A function that a loop calls seldom.
#define INT4KV_SELDOM inline

// A kernel says so before it touches the first tensor: what kernels before it wrote is there from here on.
inline void await_tensors() {}

// Asks for the line of memory at an address ahead of its load, where there is a way to.
inline void ask_for(const device void*) {}

// Splits of a simdgroup of merge whose rows are on their way at once.
constant constexpr int kMergeRound = 32;

// x, computed once and kept.
template <typename T>
inline T kept(T x) {
  return x;
}

#endif
