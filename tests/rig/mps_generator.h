#pragma once
#include <ATen/core/Generator.h>

namespace rig {

// The CPU generator that draws for an mps generator: random ops run on the CPU.
at::Generator& mirror_of(const c10::GeneratorImpl* generator);

} // namespace rig
