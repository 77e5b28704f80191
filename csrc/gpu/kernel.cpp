#include "kernel.h"

namespace int4kv {

std::string Kernel::name() const {
  const char* entries[] = {"quantize_", "dequantize_", "attend_simd_", "attend_matrix_", "merge_"};
  return entries[uint32_t(entry)] + std::to_string(size);
}

std::string Kernel::describe() const {
  if (k_bits == 0) return name() + (paged ? " (paged)" : decode ? " (decode)" : "");
  const char* codebooks[] = {"uniform", "lloyd", "absmax", "asymmetric"};
  const std::string widths = " (K " + std::to_string(k_bits) + ", V " + std::to_string(v_bits) + ", ";
  return name() + widths + codebooks[codebook] + (paged ? ", paged" : "") + (decode ? ", decode)" : ")");
}

} // namespace int4kv
