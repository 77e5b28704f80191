#include "device_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "counters.h"
#include "modes.h"

namespace rig {
namespace {

constexpr size_t kAlignment = 256;      // of an MTLBuffer cut out of a heap
constexpr size_t kVectorAlignment = 16; // the widest load of a kernel
constexpr char kCanary = 0x5A;
constexpr char kFreed = static_cast<char>(0xDD);
constexpr size_t kFreedBytes = 4096;    // overwritten at release, enough to notice
constexpr char kNaN = static_cast<char>(0xFF);

size_t rounded_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

} // namespace

DeviceMemory::DeviceMemory(size_t length) : length_(length) {
  if (modes().guard) {
    map();
  } else {
    data_ = static_cast<char*>(std::aligned_alloc(kAlignment, rounded_up(length, kAlignment)));
    RIG_CHECK(data_, "no memory for a buffer of %zu bytes", length);
  }
  std::memset(data_, modes().poison ? kNaN : 0, length);
  counters().buffers_allocated++;
  counters().bytes_allocated += length;
  counters().live_bytes += length;
}

DeviceMemory::~DeviceMemory() {
  counters().live_bytes -= length_;
  if (mapping_) {
    check_canary();
    unmap();
  } else {
    std::memset(data_, kFreed, std::min(length_, kFreedBytes));
    std::free(data_);
  }
}

void DeviceMemory::map() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t padded = rounded_up(length_, kVectorAlignment);
  mapped_ = rounded_up(padded, page) + page;
  void* mapping = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  RIG_CHECK(mapping != MAP_FAILED, "no memory for a guarded buffer of %zu bytes", length_);
  mapping_ = static_cast<char*>(mapping);
  mprotect(mapping_ + mapped_ - page, page, PROT_NONE);
  data_ = mapping_ + mapped_ - page - padded;
  std::memset(data_ + length_, kCanary, padded - length_);
}

void DeviceMemory::check_canary() const {
  const size_t padded = rounded_up(length_, kVectorAlignment);
  const bool intact = std::all_of(data_ + length_, data_ + padded, [](char byte) { return byte == kCanary; });
  RIG_CHECK(intact, "something was written behind a buffer of %zu bytes", length_);
}

// The address is never used again, so a late access of a freed buffer faults.
void DeviceMemory::unmap() {
  mmap(mapping_, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

} // namespace rig
