// Dispatches on torch's current stream. torch keeps one compute encoder open and lets kernels share it; this encodes into that one,
// inside a block on the stream's queue, and never commits: order on the stream is the whole contract with torch's own ops.
#include <ATen/mps/MPSProfiler.h>
#include <ATen/mps/MPSStream.h>
#include <c10/util/Exception.h>

#include "../gpu/backend.h"
#include "pipelines.h"

namespace int4kv {
namespace {

// On mps a storage's data pointer is the buffer object.
id<MTLBuffer> buffer_of(const at::Tensor& x) {
  return __builtin_bit_cast(id<MTLBuffer>, x.storage().data());
}

// In place of a tensor that is not there the first one is bound: Metal's validation wants a buffer everywhere.
void bind(id<MTLComputeCommandEncoder> encoder, const Dispatch& dispatch) {
  NSUInteger index = 0;
  for (const at::Tensor* tensor : dispatch.tensors) {
    const at::Tensor& bound = is_there(tensor) ? *tensor : *dispatch.tensors.front();
    [encoder setBuffer:buffer_of(bound) offset:bound.storage_offset() * bound.element_size() atIndex:index++];
  }
  [encoder setBytes:dispatch.parameters length:dispatch.parameter_bytes atIndex:index];
}

void encode_one(id<MTLComputeCommandEncoder> encoder, const Pipeline& pipeline, const Dispatch& dispatch) {
  auto& profiler = at::mps::getMPSProfiler();
  profiler.beginProfileKernel(pipeline.state, pipeline.label, false);
  [encoder setComputePipelineState:pipeline.state];
  bind(encoder, dispatch);
  const Grid& grid = dispatch.threadgroups;
  [encoder dispatchThreadgroups:MTLSizeMake(grid.x, grid.y, grid.z)
          threadsPerThreadgroup:MTLSizeMake(dispatch.kernel.simdgroups() * INT4KV_SIMD, 1, 1)];
  profiler.endProfileKernel(pipeline.state);
}

// Metal computes garbage, without an error, when a threadgroup is larger than the pipeline allows.
const Pipeline& pipeline_for(const Dispatch& dispatch) {
  const Pipeline& pipeline = Pipelines::shared().find(dispatch.kernel);
  const NSUInteger allowed = [pipeline.state maxTotalThreadsPerThreadgroup];
  const NSUInteger needed = dispatch.kernel.simdgroups() * INT4KV_SIMD;
  TORCH_CHECK(
      needed <= allowed, "int4kv: the Metal kernel ", dispatch.kernel.name(), " needs ", needed,
      " threads per threadgroup and this device allows ", allowed);
  return pipeline;
}

} // namespace

void encode(std::initializer_list<Dispatch> dispatches) {
  std::vector<std::pair<const Pipeline*, const Dispatch*>> work;
  for (const Dispatch& dispatch : dispatches) {
    if (!is_empty(dispatch.threadgroups)) work.emplace_back(&pipeline_for(dispatch), &dispatch);
  }
  const auto& made = work;  // a block copies what it captures, and a reference stays one
  at::mps::MPSStream* stream = at::mps::getCurrentMPSStream();
  at::mps::dispatch_sync_with_rethrow(stream->queue(), ^{
    @autoreleasepool {
      id<MTLComputeCommandEncoder> encoder = stream->commandEncoder();
      for (const auto& [pipeline, dispatch] : made) encode_one(encoder, *pipeline, *dispatch);
    }
  });
}

} // namespace int4kv
