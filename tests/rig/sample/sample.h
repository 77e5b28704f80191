// What the sample ops share: kernels in one Metal source, and how a tensor becomes a buffer.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/mps/MPSStream.h>
#import <Metal/Metal.h>

namespace sample {

// float32 x[i] *= factor. "scale" takes the factor in buffer 1; "scale_constant" as function constant 0;
// "scale_staged" goes through threadgroup memory 0.
id<MTLComputePipelineState> pipeline(const std::string& kernel);
id<MTLComputePipelineState> pipeline_with_constant(float factor);
// Raises RuntimeError with the compiler's text.
id<MTLLibrary> compile(const char* source, NSUInteger language_version);

inline id<MTLBuffer> buffer_of(const at::Tensor& x) {
  return __builtin_bit_cast(id<MTLBuffer>, x.storage().data());
}

inline void bind(id<MTLComputeCommandEncoder> encoder, const at::Tensor& x) {
  [encoder setBuffer:buffer_of(x) offset:x.storage_offset() * x.element_size() atIndex:0];
}

} // namespace sample
