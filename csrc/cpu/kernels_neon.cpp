// The kernels for 64-bit Arm.
#if defined(__aarch64__)
#include <cmath>
#include <cstdint>
#include <cstring>

#include <arm_neon.h>

#include "kernels.h"

namespace int4kv::neon {

#include "simd/neon.h"
#include "kernels/load_tile.h"
#include "kernels/score.h"
#include "kernels/weigh.h"
#include "kernels/accumulate.h"
#include "kernels/attend_tile.h"

extern const Kernels kKernels = {"neon", load_tile, start_block, attend_tile, finish_block};

} // namespace int4kv::neon
#endif
