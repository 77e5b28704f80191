// The kernels for 64-bit Arm.
#if defined(__aarch64__)
#include <cmath>
#include <cstdint>
#include <cstring>

#include <arm_neon.h>

#include "kernels.h"

namespace int4kv::neon {

#include "simd/neon.h"

extern const Kernels kKernels = {"neon"};

} // namespace int4kv::neon
#endif
