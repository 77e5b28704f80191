// The compiled kernels: one library, and one pipeline per kernel and its constants, made when first asked for and kept for the
// process's life.
#pragma once
#import <Metal/Metal.h>

#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

namespace int4kv {

// A kernel by its name in the library. The attention kernels are compiled for one width of K and of V and one codebook.
struct Kernel {
  std::string name;
  unsigned k_bits = 0, v_bits = 0, codebook = 0;

  Kernel(std::string name_) : name(std::move(name_)) {}
  Kernel(std::string name_, unsigned k_bits_, unsigned v_bits_, unsigned codebook_)
      : name(std::move(name_)), k_bits(k_bits_), v_bits(v_bits_), codebook(codebook_) {}

  bool operator<(const Kernel& other) const {
    return std::tie(name, k_bits, v_bits, codebook) < std::tie(other.name, other.k_bits, other.v_bits, other.codebook);
  }
  // The name and, where there are any, the constants.
  std::string describe() const;
};

class Pipelines {
 public:
  // Never destroyed: Metal may be gone before static destructors run.
  static Pipelines& shared();

  // Raises RuntimeError with the compiler's words. Safe from any thread.
  id<MTLComputePipelineState> find(const Kernel& kernel);

  // "metallib" or "source", and the kernels made so far.
  std::vector<std::string> describe();

 private:
  id<MTLLibrary> library();
  id<MTLComputePipelineState> build(const Kernel& kernel);

  std::mutex mutex_;
  id<MTLLibrary> library_ = nil;
  std::map<Kernel, id<MTLComputePipelineState>> made_;
};

} // namespace int4kv
