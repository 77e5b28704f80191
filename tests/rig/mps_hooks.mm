// at::mps::MPSHooks: what torch.mps.* and torch.backends.mps.* ask. torch caches the first answer to "are there hooks?",
// so this library must be loaded before anybody asks.
#include <ATen/mps/MPSHooks.h>

#include <ATen/mps/MPSGeneratorImpl.h>
#include <ATen/mps/MPSProfiler.h>
#include <ATen/mps/MPSStream.h>
#include <c10/core/CPUAllocator.h>

#include <mutex>
#include <unordered_map>

#include "counters.h"
#include "mps_allocator.h"

namespace at::mps {
namespace {

constexpr unsigned kMacOS = 14;

// torch.mps.Event: when each was recorded, in milliseconds.
struct Events {
  std::mutex mutex;
  std::unordered_map<uint32_t, double> recorded;
  uint32_t last = 0;
};

Events& events() {
  static auto* one = new Events;
  return *one;
}

} // namespace

void MPSHooks::init() const {}

bool MPSHooks::hasMPS() const {
  return true;
}

bool MPSHooks::isOnMacOSorNewer(unsigned major, unsigned minor) const {
  return major < kMacOS || (major == kMacOS && minor == 0);
}

Device MPSHooks::getDeviceFromPtr(void*) const {
  return Device(DeviceType::MPS, 0);
}

const Generator& MPSHooks::getDefaultGenerator(DeviceIndex) const {
  return mps::detail::getDefaultMPSGenerator();
}

Generator MPSHooks::getNewGenerator(DeviceIndex) const {
  return mps::detail::createMPSGenerator();
}

void MPSHooks::deviceSynchronize() const {
  rig::synchronise_stream();
}

void MPSHooks::commitStream() const {
  auto* stream = getDefaultMPSStream();
  dispatch_sync(stream->queue(), ^{
    stream->synchronize(SyncType::COMMIT);
  });
}

void* MPSHooks::getCommandBuffer() const {
  auto* stream = getDefaultMPSStream();
  stream->endKernelCoalescing();
  return stream->commandBuffer();
}

void* MPSHooks::getDispatchQueue() const {
  return getDefaultMPSStream()->queue();
}

Allocator* MPSHooks::getMPSDeviceAllocator() const {
  return getIMPSAllocator();
}

void MPSHooks::emptyCache() const {}

size_t MPSHooks::getCurrentAllocatedMemory() const {
  return rig::counters().live_bytes;
}

size_t MPSHooks::getDriverAllocatedMemory() const {
  return rig::counters().live_bytes;
}

size_t MPSHooks::getRecommendedMaxMemory() const {
  return rig::kRecommendedMemory;
}

void MPSHooks::setMemoryFraction(double) const {}

size_t MPSHooks::getMaxBufferLength() const {
  return [MPSDevice::getInstance()->device() maxBufferLength];
}

bool MPSHooks::isPinnedPtr(const void*) const {
  return false;
}

Allocator* MPSHooks::getPinnedMemoryAllocator() const {
  return c10::GetCPUAllocator();
}

void MPSHooks::profilerStartTrace(const std::string& mode, bool wait_until_completed) const {
  getMPSProfiler().StartTrace(mode, wait_until_completed);
}

void MPSHooks::profilerStopTrace() const {
  getMPSProfiler().StopTrace();
}

uint32_t MPSHooks::acquireEvent(bool) const {
  std::lock_guard<std::mutex> lock(events().mutex);
  return ++events().last;
}

void MPSHooks::releaseEvent(uint32_t event) const {
  std::lock_guard<std::mutex> lock(events().mutex);
  events().recorded.erase(event);
}

void MPSHooks::recordEvent(uint32_t event) const {
  rig::synchronise_stream();
  std::lock_guard<std::mutex> lock(events().mutex);
  events().recorded[event] = static_cast<double>(clock_gettime_nsec_np(CLOCK_MONOTONIC)) * 1e-6;
}

void MPSHooks::waitForEvent(uint32_t) const {
  rig::synchronise_stream();
}

void MPSHooks::synchronizeEvent(uint32_t) const {
  rig::synchronise_stream();
}

bool MPSHooks::queryEvent(uint32_t) const {
  return true;
}

double MPSHooks::elapsedTimeOfEvents(uint32_t start, uint32_t end) const {
  std::lock_guard<std::mutex> lock(events().mutex);
  return events().recorded.at(end) - events().recorded.at(start);
}

} // namespace at::mps

namespace at {
using mps::MPSHooks;
REGISTER_MPS_HOOKS(MPSHooks);
} // namespace at

// False when torch had decided that there is no mps before this library came.
extern "C" bool rig_is_heard() {
  return at::detail::getMPSHooks().hasMPS();
}
