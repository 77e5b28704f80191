// The kernels for x86-64 with AVX-512 and its VNNI and VBMI.
#if defined(__x86_64__)
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

// INT4KV_AVX512_EMULATION: a header with these intrinsics for processors that lack them.
#if defined(INT4KV_AVX512_EMULATION)
#include INT4KV_AVX512_EMULATION
#else
// From here on, so that no inline function of a standard header is compiled for more than every processor has.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")
#endif
#include <immintrin.h>
#endif

#include "../format.h"
#include "kernels.h"

namespace int4kv::avx512 {

#include "simd/avx512.h"
#include "kernels/row.h"
#include "kernels/attend.h"

extern const Kernels kKernels = {
    "avx512",
    load_row, store_row, rotate, unrotate, load_rotated, multiply, multiply_transposed, encode, decode,
    load_tile, start_block, attend_tile, finish_block,
};

} // namespace int4kv::avx512
#if defined(__clang__) && !defined(INT4KV_AVX512_EMULATION)
#pragma clang attribute pop
#endif
#endif
