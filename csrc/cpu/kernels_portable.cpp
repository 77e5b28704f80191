// The kernels for any processor.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace int4kv::portable {

#include "simd/portable.h"

extern const Kernels kKernels = {"portable"};

} // namespace int4kv::portable
