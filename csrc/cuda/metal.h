// Metal's language and library in CUDA C++: NVRTC compiles the kernels of csrc/metal as they are, a simdgroup being a warp.
//
// What the host does:
//   program     this file, then csrc/metal's kernels, each quoted include in place and once; where csrc/cuda has a file of an
//               included name, that one is taken. Includes of <metal_...> are left out. One program serves one kernel.
//   options     -std=c++17 -arch=sm_XX (80 or newer) -default-device
//               -DINT4KV_WANTS_attend_matrix_128=, (the kernel's name, and a comma: the others are left out)
//               -DINT4KV_FUNCTION_CONSTANTS=k_bits,v_bits,codebook,paged,decode (numbers; 0 where a kernel has none)
//               -DINT4KV_SIMDGROUPS=16u -DINT4KV_SHARED_BYTES=232448 for large blocks of attend_matrix; -DINT4KV_MERGE_SIMDGROUPS=16u for those of merge
//               -fmad=false for quantize and dequantize, whose bits csrc/format.h promises; -fmad=true otherwise; no fast math
//   function    of the kernel's name, unmangled
//   launch      grid: the threadgroups; block: 32 * simdgroups threads; dynamic shared memory: none, of a large attend_matrix all there is
//   arguments   two, by value: the pointers of [[buffer(0)]] .. [[buffer(N - 1)]] as one array (null: not there), and the struct of
//               [[buffer(N)]]
#ifndef INT4KV_CUDA_METAL_H
#define INT4KV_CUDA_METAL_H

#pragma nv_diag_suppress 161   // a pragma for clang
#pragma nv_diag_suppress 177   // constants that this kernel does not use
#pragma nv_diag_suppress 1097  // attributes of Metal
#define __METAL_VERSION__ 310

#define device
#define threadgroup
#define thread
#define constant const
#define inline inline __attribute__((always_inline))

#include "metal_types.h"
#include "metal_simdgroup.h"

#endif
