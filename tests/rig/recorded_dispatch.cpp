#include "recorded_dispatch.h"

#include <algorithm>
#include <atomic>

#include "launch_recorder.h"
#include "modes.h"

namespace rig {

void RecordedDispatch::check() const {
  const char* kernel_name = name().c_str();
  size_t threadgroup_total = 0;
  for (size_t i = 0; i < kBindings; i++) {
    if (uses_buffer(i)) {
      RIG_CHECK(buffers[i].bound, "%s: buffer %zu is not bound", kernel_name, i);
      RIG_CHECK(buffers[i].data(), "%s: buffer %zu is bound to nil", kernel_name, i);
    }
    if (uses_threadgroup(i)) {
      RIG_CHECK(threadgroup_bytes[i], "%s: threadgroup memory %zu has no length", kernel_name, i);
    }
    threadgroup_total += threadgroup_bytes[i];
  }
  RIG_CHECK(
      threadgroup_total <= kThreadgroupMemory, "%s: threadgroup memory %zu > %zu", kernel_name, threadgroup_total,
      kThreadgroupMemory);
}

void RecordedDispatch::run() const {
  static std::atomic<uint64_t> launches{0};
  void* addresses[kBindings];
  for (size_t i = 0; i < kBindings; i++) addresses[i] = buffers[i].data();
  MslLaunch launch{};
  launch.buffers = addresses;
  launch.threadgroup_bytes = threadgroup_bytes.data();
  std::copy_n(grid.threads_per_threadgroup.begin(), 3, launch.threads_per_threadgroup);
  std::copy_n(grid.threadgroups.begin(), 3, launch.threadgroups);
  std::copy_n(grid.threads.begin(), 3, launch.threads);
  launch.schedule = modes().schedule;
  launch.seed = modes().seed + launches++;
  LaunchRecorder recorder(*this);
  instance->launch(kernel, launch);
  recorder.write_results();
}

} // namespace rig
