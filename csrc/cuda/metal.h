// Metal's language and library in CUDA C++: NVRTC compiles the kernels of csrc/metal as they are, a simdgroup being a warp.
//
// What the host does:
//   program     this file, then csrc/metal's kernels, each quoted include in place and once; where csrc/cuda has a file of an
//               included name, that one is taken. Includes of <metal_...> are left out. One program serves one kernel.
//   options     -std=c++17 -arch=sm_XX (80 or newer) -default-device -DINT4KV_KERNEL=attend_matrix_128
//               -DINT4KV_FUNCTION_CONSTANTS=k_bits,v_bits,codebook (numbers; 0,0,0 where a kernel has none)
//               -fmad=false for quantize and dequantize, whose bits csrc/format.h promises; -fmad=true otherwise; no fast math
//   function    INT4KV_KERNEL's value, unmangled; the other kernels of the program are empty
//   launch      grid: the threadgroups; block: 32 * simdgroups threads; no dynamic shared memory
//   arguments   two, by value: the pointers of [[buffer(0)]] .. [[buffer(N - 1)]] as one array (null: not there), and the struct of
//               [[buffer(N)]]
#ifndef INT4KV_CUDA_METAL_H
#define INT4KV_CUDA_METAL_H

#endif
