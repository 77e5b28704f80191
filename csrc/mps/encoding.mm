#include "encoding.h"

#include <ATen/mps/MPSProfiler.h>
#include <ATen/mps/MPSStream.h>
#include <c10/util/Exception.h>

namespace int4kv {
namespace {

bool is_there(const at::Tensor& x) {
  return x.defined() && x.numel() > 0;
}

// On mps a storage's data pointer is the buffer object.
id<MTLBuffer> buffer_of(const at::Tensor& x) {
  return __builtin_bit_cast(id<MTLBuffer>, x.storage().data());
}

void bind(id<MTLComputeCommandEncoder> encoder, const Dispatch& dispatch) {
  NSUInteger index = 0;
  for (const at::Tensor& tensor : dispatch.tensors) {
    const at::Tensor& bound = is_there(tensor) ? tensor : dispatch.tensors.front();
    [encoder setBuffer:buffer_of(bound) offset:bound.storage_offset() * bound.element_size() atIndex:index++];
  }
  [encoder setBytes:dispatch.parameters length:dispatch.parameter_bytes atIndex:index];
}

void encode_one(id<MTLComputeCommandEncoder> encoder, id<MTLComputePipelineState> pipeline, const Dispatch& dispatch) {
  auto& profiler = at::mps::getMPSProfiler();
  profiler.beginProfileKernel(pipeline, "int4kv_" + dispatch.kernel.name, false);
  [encoder setComputePipelineState:pipeline];
  bind(encoder, dispatch);
  [encoder dispatchThreadgroups:dispatch.threadgroups
          threadsPerThreadgroup:MTLSizeMake(dispatch.simdgroups * INT4KV_SIMD, 1, 1)];
  profiler.endProfileKernel(pipeline);
}

bool is_empty(const Dispatch& dispatch) {
  return dispatch.threadgroups.width * dispatch.threadgroups.height * dispatch.threadgroups.depth == 0;
}

// Metal computes garbage, without an error, when a threadgroup is larger than the pipeline allows.
id<MTLComputePipelineState> pipeline_for(const Dispatch& dispatch) {
  id<MTLComputePipelineState> pipeline = Pipelines::shared().find(dispatch.kernel);
  const NSUInteger allowed = [pipeline maxTotalThreadsPerThreadgroup];
  TORCH_CHECK(
      dispatch.simdgroups * INT4KV_SIMD <= allowed, "int4kv: the Metal kernel ", dispatch.kernel.name, " needs ",
      dispatch.simdgroups * INT4KV_SIMD, " threads per threadgroup and this device allows ", allowed);
  return pipeline;
}

} // namespace

void encode(const std::vector<Dispatch>& dispatches) {
  std::vector<id<MTLComputePipelineState>> pipelines;
  for (const Dispatch& dispatch : dispatches) pipelines.push_back(is_empty(dispatch) ? nil : pipeline_for(dispatch));
  const auto& made = pipelines;  // a block copies what it captures, and a reference stays one
  at::mps::MPSStream* stream = at::mps::getCurrentMPSStream();
  at::mps::dispatch_sync_with_rethrow(stream->queue(), ^{
    @autoreleasepool {
      id<MTLComputeCommandEncoder> encoder = stream->commandEncoder();
      for (size_t i = 0; i < dispatches.size(); ++i) {
        if (made[i]) encode_one(encoder, made[i], dispatches[i]);
      }
    }
  });
}

Int4kvRows rows_of(const at::Tensor& x) {
  if (!is_there(x)) return {0, 0, 0, 0, INT4KV_FLOAT32};
  const auto type = x.scalar_type();
  const unsigned code = type == at::kHalf ? INT4KV_FLOAT16 : type == at::kBFloat16 ? INT4KV_BFLOAT16 : INT4KV_FLOAT32;
  return {x.stride(0), x.stride(1), x.stride(2), x.stride(3), code};
}

} // namespace int4kv
