// The kernels for 64-bit Arm.
#if defined(__aarch64__)
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include <arm_neon.h>

#include "../format.h"
#include "kernels.h"

namespace int4kv::neon {

#include "simd/neon.h"
#include "kernels/row.h"
#include "kernels/attend.h"

extern const Kernels kKernels = {
    "neon",
    load_row, store_row, rotate, unrotate, load_rotated, multiply, multiply_transposed, encode, decode,
    load_tile, start_block, attend_tile, finish_block,
};

} // namespace int4kv::neon
#endif
