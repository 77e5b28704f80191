#include "driver.h"

#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <string>

namespace int4kv {
namespace {

// Where torch has it open already this is the same one.
void* open(const std::string& name) {
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK(library, "int4kv: ", name, " cannot be opened: ", dlerror());
  return library;
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  TORCH_CHECK(function, "int4kv: the CUDA library lacks ", name, ": ", dlerror());
}

Driver load_driver() {
  void* library = open("libcuda.so.1");
  Driver driver;
  find(library, "cuCtxGetCurrent", driver.context_get_current);
  find(library, "cuGetErrorString", driver.error_string);
  find(library, "cuFuncGetAttribute", driver.function_attribute);
  find(library, "cuFuncSetAttribute", driver.set_function_attribute);
  find(library, "cuLaunchKernelEx", driver.launch);
  find(library, "cuModuleGetFunction", driver.module_function);
  find(library, "cuModuleLoadData", driver.load_module);
  find(library, "cuOccupancyMaxActiveBlocksPerMultiprocessor", driver.resident_blocks);
  return driver;
}

Nvrtc load_nvrtc() {
  void* library = open("libnvrtc.so." + std::to_string(CUDA_VERSION / 1000));
  Nvrtc nvrtc;
  find(library, "nvrtcCreateProgram", nvrtc.create);
  find(library, "nvrtcCompileProgram", nvrtc.compile);
  find(library, "nvrtcDestroyProgram", nvrtc.destroy);
  find(library, "nvrtcGetCUBIN", nvrtc.cubin);
  find(library, "nvrtcGetCUBINSize", nvrtc.cubin_size);
  find(library, "nvrtcGetErrorString", nvrtc.error_string);
  find(library, "nvrtcGetProgramLog", nvrtc.log);
  find(library, "nvrtcGetProgramLogSize", nvrtc.log_size);
  find(library, "nvrtcVersion", nvrtc.version);
  return nvrtc;
}

} // namespace

const Driver& Driver::shared() {
  static const Driver driver = load_driver();
  return driver;
}

void Driver::check(CUresult result, const char* doing, const char* kernel) const {
  if (result == CUDA_SUCCESS) return;
  const char* reason = "no reason given";
  error_string(result, &reason);
  TORCH_CHECK(false, "int4kv: ", doing, " the CUDA kernel ", kernel, " failed: ", reason);
}

const Nvrtc& Nvrtc::shared() {
  static const Nvrtc nvrtc = load_nvrtc();
  return nvrtc;
}

} // namespace int4kv
