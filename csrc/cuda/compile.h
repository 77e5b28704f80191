// NVRTC: a kernel of csrc/metal as machine code for one compute capability. metal.h says how.
#pragma once
#include <string>

#include "../gpu/kernel.h"

namespace int4kv {

// Of a block with a multiprocessor to itself, in bytes; 0 where that is too little for the large blocks of attend_matrix.
int large_shared_bytes(int capability);

// The cubin, from disk_cache.h if it was made before. capability: 90 for 9.0. Raises RuntimeError with the compiler's words. Safe from any thread.
std::string compile(const Kernel& kernel, int capability);

} // namespace int4kv
