// Command buffers hold work until they are committed: whoever reads a result without committing sees the old bytes.
#include "metal_command_buffer.h"

#import <MetalPerformanceShadersGraph/MetalPerformanceShadersGraph.h>

#include "counters.h"
#include "metal_encoder.h"
#include "validation.h"

@interface RigCommandBuffer : NSObject <MTLCommandBuffer, RigCommandSink> {
  std::vector<std::function<void()>>* _work;
  std::vector<MTLCommandBufferHandler>* _handlers;
  NSMutableArray* _retained;
  MTLCommandBufferStatus _status;
  BOOL _encoding;
  double _startTime, _endTime;
}
@end

static double seconds_now() {
  return clock_gettime_nsec_np(CLOCK_MONOTONIC) * 1e-9;
}

@implementation RigCommandBuffer
- (id)init {
  if ((self = [super init])) {
    _work = new std::vector<std::function<void()>>;
    _handlers = new std::vector<MTLCommandBufferHandler>;
    _retained = [NSMutableArray new];
  }
  return self;
}

- (void)dealloc {
  for (MTLCommandBufferHandler handler : *_handlers) Block_release(handler);
  delete _work;
  delete _handlers;
  [_retained release];
  [super dealloc];
}

- (void)record:(std::function<void()>)work {
  _work->push_back(std::move(work));
}

- (void)retainUntilCompleted:(id)resource {
  [_retained addObject:resource];
}

- (void)encoderEnded {
  _encoding = NO;
}

- (void)beginEncoding {
  RIG_CHECK(_status == MTLCommandBufferStatusNotEnqueued, "an encoder was asked for from a committed command buffer");
  RIG_CHECK(!_encoding, "a command encoder is already encoding to this command buffer");
  _encoding = YES;
}

- (id<MTLComputeCommandEncoder>)computeCommandEncoder {
  [self beginEncoding];
  return [[[RigComputeEncoder alloc] initWithSink:self] autorelease];
}

- (id<MTLComputeCommandEncoder>)computeCommandEncoderWithDispatchType:(MTLDispatchType)type {
  RIG_CHECK(type == MTLDispatchTypeSerial, "a concurrent encoder was asked for; the rig's run dispatches in order");
  return [self computeCommandEncoder];
}

- (id<MTLBlitCommandEncoder>)blitCommandEncoder {
  [self beginEncoding];
  return [[[RigBlitEncoder alloc] initWithSink:self] autorelease];
}

- (void)addCompletedHandler:(MTLCommandBufferHandler)handler {
  RIG_CHECK(_status == MTLCommandBufferStatusNotEnqueued, "addCompletedHandler after commit");
  _handlers->push_back(Block_copy(handler));
}

- (void)commit {
  RIG_CHECK(_status == MTLCommandBufferStatusNotEnqueued, "commit of a committed command buffer");
  RIG_CHECK(!_encoding, "commit with an open encoder: endEncoding comes first");
  rig::counters().commits++;
  _status = MTLCommandBufferStatusCommitted;
  _startTime = seconds_now();
  for (auto& work : *_work) work();
  _work->clear();
  _endTime = seconds_now();
  _status = MTLCommandBufferStatusCompleted;
  [_retained removeAllObjects];
  for (MTLCommandBufferHandler handler : *_handlers) handler(self);
}

- (void)waitUntilCompleted {
  RIG_CHECK(_status >= MTLCommandBufferStatusCommitted, "waitUntilCompleted before commit never returns");
  rig::counters().waits++;
}

- (MTLCommandBufferStatus)status {
  return _status;
}

- (NSError*)error {
  return nil;
}

- (CFTimeInterval)GPUStartTime {
  return _startTime;
}

- (CFTimeInterval)GPUEndTime {
  return _endTime;
}
@end

@implementation RigCommandQueue
- (id<MTLCommandBuffer>)commandBuffer {
  return [[RigCommandBuffer new] autorelease];
}
@end

@implementation MPSCommandBuffer
+ (instancetype)commandBufferFromCommandQueue:(id<MTLCommandQueue>)queue {
  MPSCommandBuffer* buffer = [[MPSCommandBuffer new] autorelease];
  buffer->_queue = [queue retain];
  buffer->_wrapped = [[queue commandBuffer] retain];
  return buffer;
}

- (void)dealloc {
  [_wrapped release];
  [_queue release];
  [super dealloc];
}

- (id<MTLCommandBuffer>)commandBuffer {
  return _wrapped;
}

- (void)commitAndContinue {
  [_wrapped commit];
  [_wrapped release];
  _wrapped = [[_queue commandBuffer] retain];
}

- (id<MTLComputeCommandEncoder>)computeCommandEncoder {
  return [_wrapped computeCommandEncoder];
}

- (id<MTLComputeCommandEncoder>)computeCommandEncoderWithDispatchType:(MTLDispatchType)type {
  return [_wrapped computeCommandEncoderWithDispatchType:type];
}

- (id<MTLBlitCommandEncoder>)blitCommandEncoder {
  return [_wrapped blitCommandEncoder];
}

- (void)addCompletedHandler:(MTLCommandBufferHandler)handler {
  [_wrapped addCompletedHandler:handler];
}

- (void)commit {
  [_wrapped commit];
}

- (void)waitUntilCompleted {
  [_wrapped waitUntilCompleted];
}

- (MTLCommandBufferStatus)status {
  return [_wrapped status];
}

- (NSError*)error {
  return [_wrapped error];
}

- (CFTimeInterval)GPUStartTime {
  return [_wrapped GPUStartTime];
}

- (CFTimeInterval)GPUEndTime {
  return [_wrapped GPUEndTime];
}
@end

@implementation MPSGraph
@end
@implementation MPSGraphExecutionDescriptor
@end
@implementation MPSGraphCompilationDescriptor
@end
