// at::mps::getMPSProfiler(): the brackets around a dispatch are counted, and must be closed in order.
#include <ATen/mps/MPSProfiler.h>

#include <mutex>
#include <vector>

#include "counters.h"
#include "validation.h"

namespace at::mps {
namespace Profiler {
namespace {

struct Open {
  std::mutex mutex;
  std::vector<const void*> handles;
};

Open& open() {
  static auto* one = new Open;
  return *one;
}

} // namespace

const std::string BaseInfo::toString(double, double) const {
  return "";
}

const std::string OperationInfo::toString(double, double) const {
  return strKey;
}

const std::string CpuFbInfo::toString(double, double) const {
  return opName;
}

const std::string CopyInfo::toString(double, double) const {
  return srcStrKey + " -> " + dstStrKey;
}

MPSProfiler::MPSProfiler() : m_os_log_events(nullptr), m_os_log_intervals(nullptr) {}

MPSProfiler::~MPSProfiler() = default;

uint64_t MPSProfiler::beginProfileKernel(const void* handle, const std::string&, bool) {
  std::lock_guard<std::mutex> lock(open().mutex);
  open().handles.push_back(handle);
  rig::counters().profiled_kernels++;
  return ++m_kernel_counter;
}

uint64_t MPSProfiler::beginProfileKernel(const void* handle, const std::string& name, const TensorList&) {
  return beginProfileKernel(handle, name, false);
}

void MPSProfiler::endProfileKernel(const void* handle, SyncType) {
  std::lock_guard<std::mutex> lock(open().mutex);
  auto& handles = open().handles;
  RIG_CHECK(!handles.empty() && handles.back() == handle, "endProfileKernel of a pipeline whose profile was not begun last");
  handles.pop_back();
}

// torch signs posts for Instruments; here only isOperationProfilingEnabled() changes.
void MPSProfiler::StartTrace(const std::string&, bool) {
  m_signpost_types = SignpostTypes::RUN_OPERATION;
}

void MPSProfiler::StopTrace() {
  m_signpost_types = SignpostTypes::SIGNPOST_NONE;
}

bool MPSProfiler::isCaptureEnabled() const {
  return false;
}

bool MPSProfiler::isCapturing() const {
  return false;
}

} // namespace Profiler

Profiler::MPSProfiler& getMPSProfiler() {
  static auto* one = new Profiler::MPSProfiler;
  return *one;
}

} // namespace at::mps
