// The kernels for any processor.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace int4kv::portable {

#include "simd/portable.h"
#include "kernels/load_tile.h"
#include "kernels/score.h"
#include "kernels/weigh.h"
#include "kernels/accumulate.h"
#include "kernels/attend_tile.h"

extern const Kernels kKernels = {"portable", load_tile, start_block, attend_tile, finish_block};

} // namespace int4kv::portable
