// Dispatches on torch's current stream. torch keeps one compute encoder open and lets kernels share it; this encodes into that one,
// inside a block on the stream's queue, and never commits: order on the stream is the whole contract with torch's own ops.
#pragma once
#include <ATen/core/Tensor.h>
#import <Metal/Metal.h>

#include <string>
#include <vector>

#include "../metal/parameters.h"
#include "pipelines.h"

namespace int4kv {

// One kernel: tensors at buffers 0, 1, ..., then its parameter struct. A tensor that is not there (undefined or empty) is bound
// to the first one's buffer, which the kernel will not touch.
struct Dispatch {
  Kernel kernel;
  std::vector<at::Tensor> tensors;
  const void* parameters;
  size_t parameter_bytes;
  MTLSize threadgroups;
  unsigned simdgroups;
};

// Encode them one after the other. A grid of no threadgroups is left out.
void encode(const std::vector<Dispatch>& dispatches);

// Any tensor [batch, head, token, channel]; one that is not there has zero strides.
Int4kvRows rows_of(const at::Tensor& x);

} // namespace int4kv
