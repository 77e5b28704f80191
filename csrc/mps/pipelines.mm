#include "pipelines.h"

#include <ATen/mps/MPSDevice.h>
#include <c10/util/Exception.h>
#include <dispatch/dispatch.h>
#import <Foundation/Foundation.h>

#include "../format.h"
#include "../metal/parameters.h"
#include "int4kv_metal_source.h"

namespace int4kv {
namespace {

const char* reason(NSError* error) {
  return error ? [[error localizedDescription] UTF8String] : "no reason given";
}

id<MTLLibrary> from_library(id<MTLDevice> device, NSError** error) {
  dispatch_data_t data = dispatch_data_create(kMetalLibrary, kMetalLibraryBytes, nullptr, ^{});
  id<MTLLibrary> library = [device newLibraryWithData:data error:error];
  dispatch_release(data);
  return library;
}

// Safe math: NaN and infinity count, divisions are rounded correctly. Where speed asks for less, a kernel says fast:: itself.
id<MTLLibrary> from_source(id<MTLDevice> device, NSError** error) {
  MTLCompileOptions* options = [[MTLCompileOptions new] autorelease];
  [options setLanguageVersion:MTLLanguageVersion3_1];
  [options setFastMathEnabled:NO];
  return [device newLibraryWithSource:[NSString stringWithUTF8String:kMetalSource] options:options error:error];
}

// Every constant has a value, whether a kernel asks for it or not.
MTLFunctionConstantValues* constants_of(const Kernel& kernel) {
  MTLFunctionConstantValues* values = [[MTLFunctionConstantValues new] autorelease];
  [values setConstantValue:&kernel.k_bits type:MTLDataTypeUInt atIndex:INT4KV_K_BITS_CONSTANT];
  [values setConstantValue:&kernel.v_bits type:MTLDataTypeUInt atIndex:INT4KV_V_BITS_CONSTANT];
  [values setConstantValue:&kernel.codebook type:MTLDataTypeUInt atIndex:INT4KV_CODEBOOK_CONSTANT];
  [values setConstantValue:&kernel.paged type:MTLDataTypeUInt atIndex:INT4KV_PAGED_CONSTANT];
  [values setConstantValue:&kernel.decode type:MTLDataTypeUInt atIndex:INT4KV_DECODE_CONSTANT];
  return values;
}

} // namespace

Pipelines& Pipelines::shared() {
  static Pipelines* pipelines = new Pipelines;
  return *pipelines;
}

id<MTLLibrary> Pipelines::library() {
  if (library_) return library_;
  id<MTLDevice> device = at::mps::MPSDevice::getInstance()->device();
  NSError* error = nil;
  library_ = kMetalLibraryBytes ? from_library(device, &error) : from_source(device, &error);
  TORCH_CHECK(library_, "int4kv: the Metal library cannot be loaded: ", reason(error));
  return library_;
}

id<MTLComputePipelineState> Pipelines::build(const Kernel& kernel) {
  NSError* error = nil;
  id<MTLFunction> function = [library() newFunctionWithName:[NSString stringWithUTF8String:kernel.name().c_str()]
                                             constantValues:constants_of(kernel)
                                                      error:&error];
  TORCH_CHECK(function, "int4kv: there is no Metal kernel ", kernel.describe(), ": ", reason(error));
  id<MTLDevice> device = at::mps::MPSDevice::getInstance()->device();
  id<MTLComputePipelineState> pipeline = [device newComputePipelineStateWithFunction:function error:&error];
  [function release];
  TORCH_CHECK(pipeline, "int4kv: the Metal kernel ", kernel.describe(), " cannot be built: ", reason(error));
  return pipeline;
}

const Pipeline& Pipelines::find(const Kernel& kernel) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = made_.find(kernel.key());
  if (found != made_.end()) return found->second;
  @autoreleasepool {
    return made_[kernel.key()] = {kernel, build(kernel), "int4kv_" + kernel.name()};
  }
}

std::vector<std::string> Pipelines::describe() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::string> kernels = {kMetalLibraryBytes ? "metallib" : "source"};
  for (const auto& made : made_) kernels.push_back(made.second.kernel.describe());
  return kernels;
}

} // namespace int4kv
