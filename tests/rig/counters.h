// What happened since the last reset, for tests that ask how much an op encoded, committed, allocated.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

#define RIG_COUNTERS(COUNTER) \
  COUNTER(dispatches)         \
  COUNTER(encoders)           \
  COUNTER(commits)            \
  COUNTER(waits)              \
  COUNTER(synchronisations)   \
  COUNTER(buffers_allocated)  \
  COUNTER(bytes_allocated)    \
  COUNTER(live_bytes)         \
  COUNTER(profiled_kernels)

namespace rig {

struct Counters {
#define RIG_MEMBER(name) std::atomic<uint64_t> name{0};
  RIG_COUNTERS(RIG_MEMBER)
#undef RIG_MEMBER
};

Counters& counters();

// Counts a dispatch and keeps the kernel's name.
void count_dispatch(const std::string& kernel);

} // namespace rig
