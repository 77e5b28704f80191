// The kernels for x86-64 with AVX2, FMA and F16C.
#if defined(__x86_64__)
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

// From here on, so that no inline function of a standard header is compiled for more than every processor has.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#include <immintrin.h>

#include "../format.h"
#include "kernels.h"

namespace int4kv::avx2 {

#include "simd/avx2.h"
#include "kernels/row.h"
#include "kernels/attend.h"

extern const Kernels kKernels = {
    "avx2",
    load_row, store_row, rotate, unrotate, load_rotated, multiply, multiply_transposed, encode, decode,
    load_tile, start_block, attend_tile, finish_block,
};

} // namespace int4kv::avx2
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
