// prepare: builds the kernels ahead of the first token.
#include "../ops.h"
#include "backend.h"
#include "plan.h"

namespace int4kv {
namespace {

// Of any head_dim a multiple of 32; the attention kernels for one width of K and of V and one codebook.
std::vector<Kernel> kernels_for(at::IntArrayRef head_dims, const Kernel& constants, const at::Tensor& on) {
  const auto attention = [&](Entry entry, uint32_t size, uint32_t decode = 0) {
    return Kernel{entry, size, constants.k_bits, constants.v_bits, constants.codebook, constants.paged, decode};
  };
  const bool symmetric_codes =
      constants.codebook != INT4KV_ASYMMETRIC && constants.k_bits < INT4KV_PLAIN_BITS && constants.v_bits < INT4KV_PLAIN_BITS;
  std::vector<Kernel> kernels = {attention(Entry::kAttendSimd, 1), attention(Entry::kAttendSimd, 2)};
  for (const int64_t head_dim : head_dims) {
    const auto size = static_cast<uint32_t>(head_dim);
    kernels.push_back({Entry::kQuantize, size, 0, 0, 0, constants.paged});
    kernels.push_back({Entry::kDequantize, size});
    const bool matrix = symmetric_codes && has_matrix_kernel(head_dim);
    for (const uint32_t decode : {0, 1}) {
      kernels.push_back({Entry::kMerge, size, 0, 0, 0, 0, decode});
      if (matrix) kernels.push_back(attention(Entry::kAttendMatrix, size, decode));
    }
  }
  for (size_t i = 0, count = kernels.size(); i < count; ++i) {
    Kernel large = kernels[i];
    large.large = 1;
    if (has_large(large, on)) kernels.push_back(large);
  }
  return kernels;
}

std::vector<std::string> prepare(
    const at::Tensor& example, at::IntArrayRef head_dims, int64_t k_bits, int64_t v_bits, std::string_view codebook, bool paged) {
  const Kernel constants{
      Entry::kAttendSimd, 0, static_cast<uint32_t>(k_bits), static_cast<uint32_t>(v_bits), static_cast<uint32_t>(codebook_of(codebook)),
      paged};
  build(kernels_for(head_dims, constants, example), example);
  return describe_kernels(example);
}

} // namespace

void register_prepare(torch::Library& library) {
  library.impl("prepare", prepare);
}

} // namespace int4kv
