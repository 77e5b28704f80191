// The bytes behind one MTLBuffer.
//
//   RIG_GUARD=1:   | page | page |.....bytes, canary| unmapped page |
//   the end abuts the unmapped page (up to 15 bytes of canary keep 16-byte alignment), and stays unmapped once freed.
#pragma once
#include <cstddef>

namespace rig {

class DeviceMemory {
 public:
  explicit DeviceMemory(size_t length);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  size_t length() const { return length_; }
  char* data() const { return data_; }

 private:
  void map();
  void unmap();
  void check_canary() const;

  const size_t length_;
  char* data_ = nullptr;
  char* mapping_ = nullptr;
  size_t mapped_ = 0;
};

} // namespace rig
