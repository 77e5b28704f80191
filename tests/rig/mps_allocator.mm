// A storage's data pointer is the id<MTLBuffer> itself, as in torch. Nothing is pooled: a buffer lives as long as its
// storage.
#include "mps_allocator.h"

#include <ATen/mps/MPSStream.h>
#include <c10/core/CPUAllocator.h>

#include "counters.h"
#include "metal_buffer.h"

namespace at::mps {
namespace {

void release(void* buffer) {
  if (buffer) [(id)buffer release];
}

class RigAllocator final : public IMPSAllocator {
 public:
  DataPtr allocate(size_t bytes) override {
    id buffer = nil;
    if (bytes) buffer = [MPSDevice::getInstance()->device() newBufferWithLength:bytes options:MTLResourceStorageModeShared];
    return {(void*)buffer, (void*)buffer, &release, Device(DeviceType::MPS, 0)};
  }
  DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* destination, const void* source, size_t bytes) const override {
    rig::synchronise_stream();
    if (bytes) std::memcpy(rig_contents(destination), rig_contents(source), bytes);
  }
  DataPtr allocScalarBufferWithValue(void* value, size_t bytes) const override {
    auto data = const_cast<RigAllocator*>(this)->allocate(bytes);
    std::memcpy(rig_contents(data.get()), value, bytes);
    return data;
  }
  std::pair<const void*, uint32_t> getSharedBufferPtr(const void* buffer) const override {
    return {rig_contents(buffer), 1};
  }
  // A CPU storage over the same bytes; it keeps the mps storage alive.
  Storage getHostAliasStorage(const Storage& storage) const override {
    auto* keep = new Storage(storage);
    const auto drop = [](void* kept) { delete static_cast<Storage*>(kept); };
    DataPtr data(rig_contents(storage.data()), keep, drop, Device(kCPU));
    const auto use_byte_size = StorageImpl::use_byte_size_t();
    return c10::make_intrusive<StorageImpl>(use_byte_size, storage.nbytes(), std::move(data), c10::GetCPUAllocator(), true);
  }
  ssize_t getUnalignedBufferSize(const void* buffer) const override {
    return buffer ? static_cast<ssize_t>([(id<MTLBuffer>)(id)const_cast<void*>(buffer) length]) : -1;
  }
  bool isSharedBuffer(const void*) const override { return true; }
  std::string formatSize(size_t size) const override { return std::to_string(size); }

  size_t getTotalAllocatedMemory() const override { return rig::counters().live_bytes; }
  size_t getCurrentAllocatedMemory() const override { return rig::counters().live_bytes; }
  size_t getDriverAllocatedMemory() const override { return rig::counters().live_bytes; }
  size_t getRecommendedMaxMemory() const override { return rig::kRecommendedMemory; }
  ssize_t getLowWatermarkValue() const override { return static_cast<ssize_t>(rig::kRecommendedMemory); }
  size_t getLowWatermarkLimit() const override { return 0; }
  size_t getHighWatermarkLimit() const override { return 0; }

  // What only a pool of buffers, several streams or torch's graphs would need.
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void freeInactiveBuffers() const override {}
  void recordStream(const DataPtr&, c10::Stream) override {}
  bool recordEvents(c10::ArrayRef<const void*>) const override { return false; }
  bool waitForEvents(c10::ArrayRef<const void*>) const override { return false; }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override { return {}; }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override {}
  IntArrayRef getBufferShape(const void*) const override { return {}; }
  void setBufferShape(const void*, const IntArrayRef&) const override {}
  id_t getBufferId(const void*) const override { return 0; }
  void setLowWatermarkRatio(double) const override {}
  void setHighWatermarkRatio(double) const override {}
};

RigAllocator allocator;

struct Registration {
  Registration() { c10::SetAllocator(DeviceType::MPS, &allocator, 1); }
} registration;

} // namespace

IMPSAllocator* getIMPSAllocator() {
  return &allocator;
}

at::Allocator* GetMPSAllocator() {
  return &allocator;
}

bool isMPSPinnedPtr(const void*) {
  return false;
}

} // namespace at::mps
