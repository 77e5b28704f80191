// A kernel of csrc/metal: its entry point and what it is compiled for.
#pragma once
#include <cstdint>
#include <string>

#include "../metal/parameters.h"

namespace int4kv {

enum class Entry : uint32_t { kQuantize, kDequantize, kAttendSimd, kAttendMatrix, kMerge };

struct Kernel {
  Entry entry;
  uint32_t size = 0;  // the head_dim, of attend_simd the query rows
  uint32_t k_bits = 0, v_bits = 0, codebook = 0;  // of the attention kernels
  uint32_t paged = 0;  // of these and quantize: 1 over the pages of many sequences
  uint32_t decode = 0;  // of attend_matrix and merge: 1 for the plain decode step that parameters.h describes
  uint32_t large = 0;  // of these: 1 for threadgroups of more simdgroups, which CUDA has

  // Different for different kernels, and cheap: it is looked up at every call.
  uint32_t key() const {
    return uint32_t(entry) | size << 3 | k_bits << 13 | v_bits << 18 | codebook << 23 | paged << 25 | decode << 26 | large << 27;
  }
  // Of a threadgroup.
  uint32_t simdgroups() const;
  // In the library: "attend_matrix_128".
  std::string name() const;
  // The name and, where there are any, the constants: "attend_matrix_128 (K 4, V 4, lloyd, paged)".
  std::string describe() const;
};

} // namespace int4kv
