// The CUDA driver and the run-time compiler NVRTC, by name: the very libraries that torch uses, so that nothing is linked and a build
// needs no more than their headers.
#pragma once
#include <cuda.h>
#include <nvrtc.h>

namespace int4kv {

struct Driver {
  decltype(&cuCtxGetCurrent) context_get_current;
  decltype(&cuGetErrorString) error_string;
  decltype(&cuFuncGetAttribute) function_attribute;
  decltype(&cuFuncSetAttribute) set_function_attribute;
  decltype(&cuLaunchKernelEx) launch;
  decltype(&cuModuleGetFunction) module_function;
  decltype(&cuModuleLoadData) load_module;
  decltype(&cuOccupancyMaxActiveBlocksPerMultiprocessor) resident_blocks;

  // Raises RuntimeError, naming the library, when there is none.
  static const Driver& shared();

  // Raises RuntimeError with the driver's words unless the call succeeded.
  void check(CUresult result, const char* doing, const char* kernel) const;
};

struct Nvrtc {
  decltype(&nvrtcCreateProgram) create;
  decltype(&nvrtcCompileProgram) compile;
  decltype(&nvrtcDestroyProgram) destroy;
  decltype(&nvrtcGetCUBIN) cubin;
  decltype(&nvrtcGetCUBINSize) cubin_size;
  decltype(&nvrtcGetErrorString) error_string;
  decltype(&nvrtcGetProgramLog) log;
  decltype(&nvrtcGetProgramLogSize) log_size;
  decltype(&nvrtcVersion) version;

  static const Nvrtc& shared();
};

} // namespace int4kv
