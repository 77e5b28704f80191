// The compiled kernels of a device: made by NVRTC for its compute capability when first asked for, and kept for the process's life.
#pragma once
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "../gpu/kernel.h"
#include "driver.h"

namespace int4kv {

// Makes a device the current one of this thread. One that has not used CUDA yet has no context, which the runtime would give it and
// the driver asks for.
class ActiveDevice {
 public:
  explicit ActiveDevice(c10::DeviceIndex device);

 private:
  c10::cuda::CUDAGuard guard_;
};

struct Pipeline {
  Kernel kernel;
  std::string name;
  CUfunction function;
  int shared_bytes;  // beside what the kernel declares
  int resident;   // blocks of its threads that the whole device holds at once
  bool overlaps;  // may be launched while the kernel before it runs: entry.h waits for that one
};

class Pipelines {
 public:
  // Of one device; never destroyed: CUDA may be gone before static destructors run.
  static Pipelines& of(c10::DeviceIndex device);

  int capability() const {
    return capability_;
  }

  // Raises RuntimeError with the compiler's words. Safe from any thread; the pipeline stays where it is.
  const Pipeline& find(const Kernel& kernel);

  // Those that are missing, at once.
  void build(const std::vector<Kernel>& kernels);

  // "source for sm_90", and the kernels made so far.
  std::vector<std::string> describe();

 private:
  explicit Pipelines(c10::DeviceIndex device);
  const Pipeline& load(const Kernel& kernel, const std::string& cubin);

  const c10::DeviceIndex device_;
  const int capability_, multiprocessors_;  // 90 for compute capability 9.0
  std::mutex mutex_;
  std::map<uint32_t, Pipeline> made_;  // by the kernel's key
};

} // namespace int4kv
