// A compiled .metal file, opened. Its C interface is msl/kernel_library.h; every set of function constants is an instance
// of its own, since the constants are static variables of the library.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "msl/kernel_library.h"

namespace rig {

struct FunctionConstant {
  std::string name;    // empty: given by index
  uint64_t index = 0;
  std::vector<char> value;
};

class KernelInstance {
 public:
  // Null and a message in *error when a constant is unknown or of another size, or the library does not start.
  static std::shared_ptr<KernelInstance> open(
      const std::string& library, const std::vector<FunctionConstant>& constants, std::string* error);

  const std::vector<std::string>& names() const { return names_; }
  const std::vector<FunctionConstant>& constants() const { return constants_; }  // with their indices
  int kernel(const std::string& name) const;  // -1 when there is none
  uint32_t buffer_mask(int kernel) const { return buffer_mask_(kernel); }
  uint32_t threadgroup_mask(int kernel) const { return threadgroup_mask_(kernel); }
  // Runs to completion; the emulated GPU runs one dispatch at a time. A message of the executor ends the process.
  void launch(int kernel, const MslLaunch& launch) const;

 private:
  std::string open_copy(const std::string& library);
  std::string set(FunctionConstant constant);
  int find_constant(const FunctionConstant& constant) const;

  void* handle_ = nullptr;
  std::vector<std::string> names_;
  std::vector<FunctionConstant> constants_;
  decltype(&msl_buffer_mask) buffer_mask_ = nullptr;
  decltype(&msl_threadgroup_mask) threadgroup_mask_ = nullptr;
  decltype(&msl_launch) launch_ = nullptr;
};

} // namespace rig
