// One dispatch as the encoder saw it. Metal runs it when its command buffer is committed, and so does the rig.
#pragma once
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "kernel_instance.h"

namespace rig {

constexpr size_t kBindings = 31;            // buffer and threadgroup indices are 0 to 30
constexpr size_t kThreadgroupMemory = 32768;

struct Binding {
  char* address = nullptr;   // the bound offset in an MTLBuffer, ...
  size_t bytes = 0;          // ... and what is left of the buffer behind it
  std::shared_ptr<std::vector<char>> constants;  // or the bytes of setBytes
  bool bound = false;        // false, or true with no address: bound to nil

  char* data() const { return constants ? constants->data() : address; }
};

struct Grid {
  std::array<uint32_t, 3> threads_per_threadgroup, threadgroups, threads;
};

struct RecordedDispatch {
  std::shared_ptr<KernelInstance> instance;
  int kernel = 0;
  std::array<Binding, kBindings> buffers;
  std::array<size_t, kBindings> threadgroup_bytes{};
  Grid grid;

  const std::string& name() const { return instance->names()[kernel]; }
  // Whether the kernel has a parameter [[buffer(index)]] or [[threadgroup(index)]].
  bool uses_buffer(size_t index) const { return (instance->buffer_mask(kernel) >> index) & 1; }
  bool uses_threadgroup(size_t index) const { return (instance->threadgroup_mask(kernel) >> index) & 1; }
  // Aborts when a buffer or threadgroup memory that the kernel uses is missing, or there is too much of it.
  void check() const;
  void run() const;
};

} // namespace rig
