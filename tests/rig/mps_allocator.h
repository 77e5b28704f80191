#pragma once
#include <ATen/mps/MPSAllocatorInterface.h>

namespace rig {

constexpr size_t kRecommendedMemory = size_t{12} << 30;

void synchronise_stream();

} // namespace rig

// The bytes of the MTLBuffer that a storage points to; aborts when it points to something else.
extern "C" void* rig_contents(const void* storage);
