#import <Metal/Metal.h>

#include "counters.h"
#include "metal_buffer.h"
#include "metal_command_buffer.h"
#include "metal_library.h"
#include "recorded_dispatch.h"
#include "validation.h"

static constexpr NSUInteger kMaxBufferLength = 8ull << 30;
static constexpr uint64_t kWorkingSet = 12ull << 30;

@implementation MTLSharedEventListener
@end
@implementation MTLCaptureManager
@end

@interface RigDevice : NSObject <MTLDevice>
@end

@implementation RigDevice
- (NSString*)name {
  return @"Rig GPU (CPU)";
}

- (NSUInteger)maxBufferLength {
  return kMaxBufferLength;
}

- (uint64_t)recommendedMaxWorkingSetSize {
  return kWorkingSet;
}

- (NSUInteger)currentAllocatedSize {
  return rig::counters().live_bytes;
}

- (NSUInteger)maxThreadgroupMemoryLength {
  return rig::kThreadgroupMemory;
}

- (MTLSize)maxThreadsPerThreadgroup {
  return MTLSizeMake(1024, 1024, 1024);
}

- (BOOL)hasUnifiedMemory {
  return YES;
}

- (BOOL)supportsFamily:(MTLGPUFamily)family {
  return family == MTLGPUFamilyApple7 || family == MTLGPUFamilyMetal3;
}

- (id<MTLCommandQueue>)newCommandQueue {
  return [RigCommandQueue new];
}

- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options {
  RIG_CHECK(
      length > 0 && length <= kMaxBufferLength, "newBufferWithLength: %lu; accepted are 1 to %lu", length, kMaxBufferLength);
  return [[RigBuffer alloc] initWithLength:length];
}

- (id<MTLBuffer>)newBufferWithBytes:(const void*)bytes length:(NSUInteger)length options:(MTLResourceOptions)options {
  id<MTLBuffer> buffer = [self newBufferWithLength:length options:options];
  memcpy([buffer contents], bytes, length);
  return buffer;
}

- (id<MTLLibrary>)newLibraryWithSource:(NSString*)source options:(MTLCompileOptions*)options error:(NSError**)error {
  return rig_new_library(source, options, error);
}

- (id<MTLLibrary>)newLibraryWithData:(dispatch_data_t)data error:(NSError**)error {
  rig_set_error(error, MTLLibraryErrorUnsupported, "a metallib cannot be opened here; accepted is source text");
  return nil;
}

- (id<MTLLibrary>)newLibraryWithURL:(NSURL*)url error:(NSError**)error {
  return [self newLibraryWithData:nil error:error];
}

- (id<MTLComputePipelineState>)newComputePipelineStateWithFunction:(id<MTLFunction>)function error:(NSError**)error {
  return rig_new_pipeline(function, 0, nil, error);
}

- (id<MTLComputePipelineState>)newComputePipelineStateWithDescriptor:(MTLComputePipelineDescriptor*)descriptor
                                                             options:(NSUInteger)options
                                                          reflection:(void*)reflection
                                                               error:(NSError**)error {
  return rig_new_pipeline(
      [descriptor computeFunction], [descriptor maxTotalThreadsPerThreadgroup], [descriptor label], error);
}
@end

id<MTLDevice> MTLCreateSystemDefaultDevice(void) {
  static id<MTLDevice> device = [RigDevice new];
  return [device retain];
}
