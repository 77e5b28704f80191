// Events and device synchronisation of torch's guard. There is one stream and it runs in order, so to record an event is
// to finish everything before it.
#include <ATen/mps/MPSGuardImpl.h>

#include "mps_allocator.h"

void rig::synchronise_stream() {
  auto* stream = at::mps::getDefaultMPSStream();
  dispatch_sync(stream->queue(), ^{
    stream->synchronize(at::mps::SyncType::COMMIT_AND_WAIT);
  });
}

namespace at::mps {
namespace {

struct RecordedTime {
  uint64_t nanoseconds = 0;
};

} // namespace

void MPSGuardImpl::createEvent(mpsEvent_t*, const EventFlag) const {}

void MPSGuardImpl::destroyEvent(void* event, const DeviceIndex) const noexcept {
  delete static_cast<RecordedTime*>(event);
}

void MPSGuardImpl::record(void** event, const Stream&, const DeviceIndex, const EventFlag) const {
  rig::synchronise_stream();
  if (!*event) *event = new RecordedTime;
  static_cast<RecordedTime*>(*event)->nanoseconds = clock_gettime_nsec_np(CLOCK_MONOTONIC);
}

void MPSGuardImpl::block(void*, const Stream&) const {}

bool MPSGuardImpl::queryEvent(void*) const {
  return true;
}

void MPSGuardImpl::synchronizeEvent(void*) const {
  rig::synchronise_stream();
}

double MPSGuardImpl::elapsedTime(void* first, void* second, const DeviceIndex) const {
  const auto start = static_cast<RecordedTime*>(first)->nanoseconds, end = static_cast<RecordedTime*>(second)->nanoseconds;
  return static_cast<double>(end - start) * 1e-6;
}

void MPSGuardImpl::synchronizeDevice(const DeviceIndex) const {
  rig::synchronise_stream();
}

} // namespace at::mps
