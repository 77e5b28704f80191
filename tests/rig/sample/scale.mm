// A right op, written as for a Mac: sample::scale_(x, factor, kernel) multiplies a contiguous float32 tensor in place.
#include "sample.h"

#include <ATen/mps/MPSProfiler.h>
#include <torch/library.h>

#include <map>
#include <mutex>

namespace sample {
namespace {

const char* const kSource = R"METAL(
#include <metal_stdlib>
using namespace metal;

kernel void scale(device float* x [[buffer(0)]], constant float& factor [[buffer(1)]], uint i [[thread_position_in_grid]]) {
  x[i] *= factor;
}

kernel void scale_staged(device float* x [[buffer(0)]], constant float& factor [[buffer(1)]],
                         threadgroup float* staged [[threadgroup(0)]], uint i [[thread_position_in_grid]],
                         uint lane [[thread_position_in_threadgroup]], uint lanes [[threads_per_threadgroup]]) {
  staged[lane] = x[i] * factor;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  x[i] = staged[lane];
}
)METAL";

const char* const kConstantSource = R"METAL(
#include <metal_stdlib>
using namespace metal;

constant float factor [[function_constant(0)]];

kernel void scale_constant(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  x[i] *= factor;
}
)METAL";

constexpr NSUInteger kLanes = 32;

id<MTLLibrary> library() {
  static id<MTLLibrary> one = compile(kSource, MTLLanguageVersion3_1);
  return one;
}

id<MTLLibrary> library_with_constant() {
  static id<MTLLibrary> one = compile(kConstantSource, MTLLanguageVersion3_1);
  return one;
}

id<MTLComputePipelineState> pipeline_of(id<MTLFunction> function, NSError* error) {
  TORCH_CHECK(function, "no function: ", error ? [[error localizedDescription] UTF8String] : "unknown name");
  id<MTLDevice> device = at::mps::MPSDevice::getInstance()->device();
  id<MTLComputePipelineState> made = [device newComputePipelineStateWithFunction:function error:&error];
  [function release];
  TORCH_CHECK(made, "no pipeline: ", [[error localizedDescription] UTF8String]);
  return made;
}

void encode(id<MTLComputeCommandEncoder> encoder, id<MTLComputePipelineState> pipeline, const at::Tensor& x, float factor) {
  [encoder setComputePipelineState:pipeline];
  bind(encoder, x);
  [encoder setBytes:&factor length:sizeof factor atIndex:1];
  [encoder setThreadgroupMemoryLength:kLanes * sizeof(float) atIndex:0];
  [encoder dispatchThreads:MTLSizeMake(x.numel(), 1, 1) threadsPerThreadgroup:MTLSizeMake(kLanes, 1, 1)];
}

void scale(const at::Tensor& x, double factor, std::string_view kernel) {
  @autoreleasepool {
    const float narrow = static_cast<float>(factor);
    id<MTLComputePipelineState> made =
        kernel == "scale_constant" ? pipeline_with_constant(narrow) : pipeline(std::string(kernel));
    auto* stream = at::mps::getCurrentMPSStream();
    dispatch_sync(stream->queue(), ^{
      at::mps::getMPSProfiler().beginProfileKernel(made, "sample_scale", false);
      encode(stream->commandEncoder(), made, x, narrow);
      at::mps::getMPSProfiler().endProfileKernel(made);
    });
  }
}

} // namespace

id<MTLLibrary> compile(const char* source, NSUInteger language_version) {
  NSError* error = nil;
  MTLCompileOptions* options = [[MTLCompileOptions new] autorelease];
  if (language_version) [options setLanguageVersion:static_cast<MTLLanguageVersion>(language_version)];
  id<MTLDevice> device = at::mps::MPSDevice::getInstance()->device();
  id<MTLLibrary> made = [device newLibraryWithSource:[NSString stringWithUTF8String:source] options:options error:&error];
  TORCH_CHECK(made, [[error localizedDescription] UTF8String]);
  return made;
}

id<MTLComputePipelineState> pipeline(const std::string& kernel) {
  static auto* made = new std::map<std::string, id<MTLComputePipelineState>>;
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  auto& found = (*made)[kernel];
  id<MTLLibrary> from = kernel == "scale_constant" ? library_with_constant() : library();
  if (!found) found = pipeline_of([from newFunctionWithName:[NSString stringWithUTF8String:kernel.c_str()]], nil);
  return found;
}

id<MTLComputePipelineState> pipeline_with_constant(float factor) {
  NSError* error = nil;
  MTLFunctionConstantValues* values = [[MTLFunctionConstantValues new] autorelease];
  [values setConstantValue:&factor type:MTLDataTypeFloat atIndex:0];
  id<MTLFunction> function =
      [library_with_constant() newFunctionWithName:@"scale_constant" constantValues:values error:&error];
  return [pipeline_of(function, error) autorelease];
}

} // namespace sample

TORCH_LIBRARY(sample, m) {
  m.def("scale_(Tensor(a!) x, float factor, str kernel='scale') -> ()");
  m.def("fault(Tensor(a!) x, str kind) -> ()");
}

TORCH_LIBRARY_IMPL(sample, MPS, m) {
  m.impl("scale_", sample::scale);
}
