#include "kernel_instance.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <mutex>

#include "validation.h"

namespace rig {
namespace {

template <typename Function>
Function* symbol(void* handle, const char* name) {
  auto* found = reinterpret_cast<Function*>(dlsym(handle, name));
  RIG_CHECK(found, "a compiled kernel library has no %s", name);
  return found;
}

} // namespace

#define RIG_SYMBOL(handle, name) symbol<decltype(::name)>(handle, #name)

std::shared_ptr<KernelInstance> KernelInstance::open(
    const std::string& library, const std::vector<FunctionConstant>& constants, std::string* error) {
  auto instance = std::make_shared<KernelInstance>();
  *error = instance->open_copy(library);
  for (const auto& constant : constants) {
    if (error->empty()) *error = instance->set(constant);
  }
  if (!error->empty()) return nullptr;
  const auto start = RIG_SYMBOL(instance->handle_, msl_start);
  if (const char* message = start()) {
    *error = message;
    return nullptr;
  }
  const auto count = RIG_SYMBOL(instance->handle_, msl_kernel_count)();
  const auto name = RIG_SYMBOL(instance->handle_, msl_kernel_name);
  for (int kernel = 0; kernel < count; kernel++) instance->names_.push_back(name(kernel));
  return instance;
}

// dlopen hands out a file that is open already, so each instance opens a copy. Never closed: dispatches may be pending.
std::string KernelInstance::open_copy(const std::string& library) {
  static std::atomic<int> copies{0};
  const std::string copy = library + "." + std::to_string(getpid()) + "." + std::to_string(copies++);
  std::error_code failure;
  std::filesystem::copy_file(library, copy, std::filesystem::copy_options::overwrite_existing, failure);
  if (failure) return "cannot copy " + library + ": " + failure.message();
  handle_ = dlopen(copy.c_str(), RTLD_NOW | RTLD_LOCAL);
  const std::string error = handle_ ? "" : dlerror();
  std::filesystem::remove(copy);
  if (!handle_) return error;
  buffer_mask_ = RIG_SYMBOL(handle_, msl_buffer_mask);
  threadgroup_mask_ = RIG_SYMBOL(handle_, msl_threadgroup_mask);
  launch_ = RIG_SYMBOL(handle_, msl_launch);
  return "";
}

int KernelInstance::find_constant(const FunctionConstant& constant) const {
  const int count = RIG_SYMBOL(handle_, msl_constant_count)();
  const auto name = RIG_SYMBOL(handle_, msl_constant_name);
  const auto index = RIG_SYMBOL(handle_, msl_constant_index);
  for (int i = 0; i < count; i++) {
    const bool same = constant.name.empty() ? static_cast<uint64_t>(index(i)) == constant.index : name(i) == constant.name;
    if (same) return i;
  }
  return -1;
}

std::string KernelInstance::set(FunctionConstant constant) {
  const std::string shown = constant.name.empty() ? std::to_string(constant.index) : "'" + constant.name + "'";
  const int found = find_constant(constant);
  if (found < 0) return "the library has no function constant " + shown;
  const size_t size = RIG_SYMBOL(handle_, msl_constant_size)(found);
  if (size != constant.value.size()) {
    return "function constant " + shown + " was given " + std::to_string(constant.value.size()) + " bytes; it has " +
        std::to_string(size);
  }
  const char* message = RIG_SYMBOL(handle_, msl_set_constant)(found, constant.value.data());
  constant.index = static_cast<uint64_t>(RIG_SYMBOL(handle_, msl_constant_index)(found));
  constants_.push_back(std::move(constant));
  return message ? message : "";
}

int KernelInstance::kernel(const std::string& name) const {
  const auto found = std::find(names_.begin(), names_.end(), name);
  return found == names_.end() ? -1 : static_cast<int>(found - names_.begin());
}

void KernelInstance::launch(int kernel, const MslLaunch& launch) const {
  static std::mutex gpu;
  std::lock_guard<std::mutex> lock(gpu);
  const char* message = launch_(kernel, &launch);
  RIG_CHECK(!message, "%s", message);
}

} // namespace rig
