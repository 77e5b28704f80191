// The ops of csrc/gpu on CUDA: kernels go to the current stream of their tensors' device, with their parameters by value, so that
// nothing waits and a graph can be captured.
#include <c10/cuda/CUDAStream.h>

#include <array>

#include "../gpu/backend.h"
#include "compile.h"
#include "pipelines.h"

namespace int4kv {
namespace {

constexpr uint32_t kMaxGridYZ = 65535;

// metal.h's contract: the pointers of all buffers as one array, then the parameters.
void launch(const Pipeline& pipeline, const Dispatch& dispatch, CUstream stream) {
  std::array<const void*, kMaxTensors> buffers{};
  for (size_t i = 0; i < dispatch.tensors.size(); ++i) {
    if (is_there(dispatch.tensors[i])) buffers[i] = dispatch.tensors[i]->const_data_ptr();
  }
  void* arguments[] = {buffers.data(), const_cast<void*>(dispatch.parameters)};
  const Grid& grid = dispatch.threadgroups;
  TORCH_CHECK(
      grid.y <= kMaxGridYZ && grid.z <= kMaxGridYZ, "int4kv: ", pipeline.name, " over ", grid.y, " blocks of 8 query rows of all KV heads and ",
      grid.z, " sequences; accepted on CUDA are ", kMaxGridYZ, " of either: attend in smaller chunks");
  CUlaunchAttribute overlaps{};
  overlaps.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  overlaps.value.programmaticStreamSerializationAllowed = 1;
  CUlaunchConfig config{};
  config.gridDimX = grid.x, config.gridDimY = grid.y, config.gridDimZ = grid.z;
  config.blockDimX = dispatch.kernel.simdgroups() * INT4KV_SIMD, config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = static_cast<unsigned>(pipeline.shared_bytes);
  config.hStream = stream;
  config.attrs = &overlaps;
  config.numAttrs = pipeline.overlaps ? 1 : 0;
  const Driver& driver = Driver::shared();
  driver.check(driver.launch(&config, pipeline.function, arguments, nullptr), "launching", pipeline.name.c_str());
}

} // namespace

// attend_matrix is the faster one from two query rows on, on an H100.
const int64_t kMatrixRows = 2;

// Measured on an H200, one sequence of 128 to 131072 tokens.
Int4kvSplitting splitting_of(const Kernel& kernel) {
  if (!kernel.large) return {255, 128, 128, 1};
  constexpr int kTile = 32;
  return {256, 64, static_cast<int>(kernel.simdgroups()) * kTile, 1};
}

bool has_large(const Kernel& kernel, const at::Tensor& on) {
  if (kernel.entry != Entry::kAttendMatrix) return kernel.entry == Entry::kMerge;
  return large_shared_bytes(Pipelines::of(on.device().index()).capability()) > 0;
}

bool is_large_merge(int64_t splits) {
  return splits > 24;
}

int64_t resident_threadgroups(const Kernel& kernel, const at::Tensor& on) {
  return Pipelines::of(on.device().index()).find(kernel).resident;
}

void encode(std::initializer_list<Dispatch> dispatches) {
  const c10::DeviceIndex device = dispatches.begin()->tensors.front()->device().index();
  Pipelines& pipelines = Pipelines::of(device);
  const ActiveDevice active(device);
  const CUstream stream = c10::cuda::getCurrentCUDAStream(device);
  for (const Dispatch& dispatch : dispatches) {
    if (!is_empty(dispatch.threadgroups)) launch(pipelines.find(dispatch.kernel), dispatch, stream);
  }
}

void build(const std::vector<Kernel>& kernels, const at::Tensor& on) {
  Pipelines::of(on.device().index()).build(kernels);
}

std::vector<std::string> describe_kernels(const at::Tensor& on) {
  return Pipelines::of(on.device().index()).describe();
}

TORCH_LIBRARY_IMPL(int4kv, CUDA, m) {
  register_attend(m);
  register_quantize(m);
  register_prepare(m);
}

} // namespace int4kv
