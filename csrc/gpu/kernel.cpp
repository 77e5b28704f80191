#include "kernel.h"

namespace int4kv {

std::string Kernel::name() const {
  const char* entries[] = {"quantize_", "dequantize_", "attend_simd_", "attend_matrix_", "merge_"};
  return entries[uint32_t(entry)] + std::to_string(size);
}

// A large threadgroup of attend_matrix has a multiprocessor to itself: as many simdgroups as its registers serve, if two tiles of each
// fit shared memory.
uint32_t Kernel::simdgroups() const {
  if (entry < Entry::kAttendSimd) return entry == Entry::kQuantize ? INT4KV_QUANTIZE_SIMDGROUPS : 1;
  if (entry == Entry::kMerge) return large ? 2 * INT4KV_MERGE_SIMDGROUPS : INT4KV_MERGE_SIMDGROUPS;
  return !large ? INT4KV_SIMDGROUPS : size == 256 || k_bits + v_bits > 12 ? 8 : 16;
}

std::string Kernel::describe() const {
  const std::string step = std::string(decode ? ", decode" : "") + (large ? ", large" : "");
  if (k_bits == 0) return name() + (paged ? " (paged)" : step.empty() ? "" : " (" + step.substr(2) + ")");
  const char* codebooks[] = {"uniform", "lloyd", "absmax", "asymmetric"};
  const std::string widths = " (K " + std::to_string(k_bits) + ", V " + std::to_string(v_bits) + ", ";
  return name() + widths + codebooks[codebook] + (paged ? ", paged" : "") + step + ")";
}

} // namespace int4kv
