#include "pipelines.h"

#include <ATen/Context.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include <future>

#include "compile.h"

namespace int4kv {
namespace {

int attribute(cudaDeviceAttr which, c10::DeviceIndex device) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

int capability_of(c10::DeviceIndex device) {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) + attribute(cudaDevAttrComputeCapabilityMinor, device);
}

// All shared memory that a block may have and the kernel has not declared.
int claim_shared(const Pipeline& pipeline, int capability) {
  const Driver& driver = Driver::shared();
  int declared = 0;
  driver.check(driver.function_attribute(&declared, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, pipeline.function), "sizing", pipeline.name.c_str());
  const int left = (large_shared_bytes(capability) - declared) / 128 * 128;
  driver.check(
      driver.set_function_attribute(pipeline.function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, left), "sizing", pipeline.name.c_str());
  return left;
}

// A module cannot be loaded while a graph is being captured.
void check_not_capturing(const Kernel& kernel) {
  TORCH_CHECK(
      c10::cuda::currentStreamCaptureStatusMayInitCtx() == c10::cuda::CaptureStatus::None, "int4kv: the CUDA kernel ", kernel.describe(),
      " is not built, and cannot be while a graph is captured; call int4kv.ops.prepare() or run once before");
}

} // namespace

ActiveDevice::ActiveDevice(c10::DeviceIndex device) : guard_(device) {
  CUcontext context = nullptr;
  Driver::shared().context_get_current(&context);
  if (!context) C10_CUDA_CHECK(cudaSetDevice(device));
}

Pipelines::Pipelines(c10::DeviceIndex device)
    : device_(device), capability_(capability_of(device)), multiprocessors_(attribute(cudaDevAttrMultiProcessorCount, device)) {}

Pipelines& Pipelines::of(c10::DeviceIndex device) {
  static const std::vector<Pipelines*>* all = [] {
    at::globalContext().getNVRTC();  // torch opens the driver and NVRTC, wherever its packages have them
    auto* made = new std::vector<Pipelines*>;
    for (c10::DeviceIndex i = 0; i < c10::cuda::device_count(); ++i) made->push_back(new Pipelines(i));
    return made;
  }();
  return *all->at(device);
}

const Pipeline& Pipelines::load(const Kernel& kernel, const std::string& cubin) {
  const Driver& driver = Driver::shared();
  Pipeline made{kernel, kernel.name(), nullptr, 0, 0, capability_ >= 90};
  const std::string described = kernel.describe();
  CUmodule module;
  driver.check(driver.load_module(&module, cubin.data()), "loading", described.c_str());
  driver.check(driver.module_function(&made.function, module, made.name.c_str()), "finding", described.c_str());
  if (kernel.large && kernel.entry == Entry::kAttendMatrix) made.shared_bytes = claim_shared(made, capability_);
  driver.check(
      driver.resident_blocks(&made.resident, made.function, kernel.simdgroups() * INT4KV_SIMD, made.shared_bytes), "sizing", described.c_str());
  made.resident *= multiprocessors_;
  return made_[kernel.key()] = made;
}

const Pipeline& Pipelines::find(const Kernel& kernel) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = made_.find(kernel.key());
  if (found != made_.end()) return found->second;
  check_not_capturing(kernel);
  const ActiveDevice active(device_);
  return load(kernel, compile(kernel, capability_));
}

void Pipelines::build(const std::vector<Kernel>& kernels) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::pair<Kernel, std::future<std::string>>> coming;
  for (const Kernel& kernel : kernels) {
    if (!made_.count(kernel.key())) coming.emplace_back(kernel, std::async(std::launch::async, compile, kernel, capability_));
  }
  const ActiveDevice active(device_);
  for (auto& [kernel, cubin] : coming) load(kernel, cubin.get());
}

std::vector<std::string> Pipelines::describe() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::string> kernels = {"source for sm_" + std::to_string(capability_)};
  for (const auto& made : made_) kernels.push_back(made.second.kernel.describe());
  return kernels;
}

} // namespace int4kv
