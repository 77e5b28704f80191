// The compiled kernels: one library and one pipeline per kernel name, made when first asked for and kept for the process's life.
#pragma once
#import <Metal/Metal.h>

#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace int4kv {

class Pipelines {
 public:
  // Never destroyed: Metal may be gone before static destructors run.
  static Pipelines& shared();

  // Raises RuntimeError with the compiler's words. Safe from any thread.
  id<MTLComputePipelineState> find(const std::string& kernel);

  // "metallib" or "source", and the kernels made so far.
  std::vector<std::string> describe();

 private:
  id<MTLLibrary> library();
  id<MTLComputePipelineState> build(const std::string& kernel);

  std::mutex mutex_;
  id<MTLLibrary> library_ = nil;
  std::unordered_map<std::string, id<MTLComputePipelineState>> made_;
};

} // namespace int4kv
