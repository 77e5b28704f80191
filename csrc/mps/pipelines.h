// The compiled kernels: one library, and one pipeline per kernel and its constants, made when first asked for and kept for the
// process's life.
#pragma once
#import <Metal/Metal.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "../gpu/kernel.h"

namespace int4kv {

struct Pipeline {
  Kernel kernel;
  id<MTLComputePipelineState> state;
  std::string label;  // in torch's profiler
};

class Pipelines {
 public:
  // Never destroyed: Metal may be gone before static destructors run.
  static Pipelines& shared();

  // Raises RuntimeError with the compiler's words. Safe from any thread; the pipeline stays where it is.
  const Pipeline& find(const Kernel& kernel);

  // "metallib" or "source", and the kernels made so far.
  std::vector<std::string> describe();

 private:
  id<MTLLibrary> library();
  id<MTLComputePipelineState> build(const Kernel& kernel);

  std::mutex mutex_;
  id<MTLLibrary> library_ = nil;
  std::map<uint32_t, Pipeline> made_;  // by the kernel's key
};

} // namespace int4kv
