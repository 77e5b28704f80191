// Pairs of a right kernel and the same with a barrier left out, and other mistakes that a tool has to find.
#include <metal_stdlib>
using namespace metal;

#define ROW 128
#define INSTANCE(name, ...) template [[host_name(name)]] kernel void __VA_ARGS__(device const float*, device float*, uint, uint);

// out = reversed row + 1, its halves exchanged.
template <bool right>
kernel void reverse(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                    uint i [[thread_index_in_threadgroup]], uint group [[threadgroup_position_in_grid]]) {
  threadgroup float shared[ROW];
  shared[i] = in[group * ROW + i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float x = shared[ROW - 1 - i];
  if (right) threadgroup_barrier(mem_flags::mem_threadgroup);
  shared[i] = x + 1;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[group * ROW + i] = shared[i ^ 64];
}
INSTANCE("reverse", reverse<true>)
INSTANCE("reverse_without_barrier", reverse<false>)

// out = row with neighbours exchanged, inside of a simdgroup.
template <int barriers, int votes>
kernel void neighbours(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                       uint i [[thread_index_in_threadgroup]], uint group [[threadgroup_position_in_grid]]) {
  threadgroup float shared[ROW];
  shared[i] = in[group * ROW + i];
  for (int k = 0; k < barriers; k++) simdgroup_barrier(mem_flags::mem_threadgroup);
  for (int k = 0; k < votes; k++) simd_any(true);
  out[group * ROW + i] = shared[i ^ 1];
}
INSTANCE("neighbours", neighbours<1, 0>)
INSTANCE("neighbours_without_barrier", neighbours<0, 0>)
INSTANCE("neighbours_after_vote", neighbours<0, 1>)

kernel void one_result(device const float* in, device float* out, uint i [[thread_index_in_threadgroup]],
                       uint group [[threadgroup_position_in_grid]]) {
  if (i == 0) out[0] = in[group];
}

kernel void past_buffer(device const float* in, device float* out, uint i [[thread_index_in_threadgroup]]) {
  out[i + 1] = in[i];
}

kernel void past_array(device const float* in, device float* out, uint i [[thread_index_in_threadgroup]]) {
  threadgroup float shared[ROW];
  shared[i] = in[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = shared[i + 1];
}
