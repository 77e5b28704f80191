// The kernels for any processor.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "../format.h"
#include "kernels.h"

namespace int4kv::portable {

#include "simd/portable.h"
#include "kernels/row.h"
#include "kernels/attend.h"

extern const Kernels kKernels = {
    "portable",
    load_row, store_row, rotate, unrotate, load_rotated, multiply, multiply_transposed, encode, decode,
    load_tile, start_block, attend_tile, finish_block,
};

} // namespace int4kv::portable
