// The ops of csrc/gpu on mps, and the thresholds of the Metal backend: reasoned, not measured, there is no Apple GPU here.
#include <ATen/mps/MPSDevice.h>

#include "../gpu/backend.h"
#include "pipelines.h"

namespace int4kv {

// attend_matrix pads query rows to 8 columns; below 3 the SIMD kernel does less work. From the static cost of both.
const int64_t kMatrixRows = 3;

// A core of an Apple GPU holds about 208 KiB of registers: three threadgroups of 128 threads with 128 registers each.
int64_t resident_threadgroups(const Kernel& /*kernel*/, const at::Tensor& /*on*/) {
  return 3 * static_cast<int64_t>(at::mps::MPSDevice::getInstance()->getCoreCount());
}

// Below 256 tokens a split costs more in its merge than it brings.
Int4kvSplitting splitting_of(const Kernel& /*kernel*/) {
  return {511, 256, 256, 0};
}

bool has_large(const Kernel& /*kernel*/, const at::Tensor& /*on*/) {
  return false;
}

bool is_large_merge(int64_t /*splits*/) {
  return false;
}

void build(const std::vector<Kernel>& kernels, const at::Tensor& /*on*/) {
  for (const Kernel& kernel : kernels) Pipelines::shared().find(kernel);
}

std::vector<std::string> describe_kernels(const at::Tensor& /*on*/) {
  return Pipelines::shared().describe();
}

TORCH_LIBRARY_IMPL(int4kv, MPS, m) {
  register_attend(m);
  register_quantize(m);
  register_prepare(m);
}

} // namespace int4kv
