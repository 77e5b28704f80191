#pragma once
#import <Metal/Metal.h>

#include <functional>

#include "metal_library.h"
#include "recorded_dispatch.h"

// Where encoders put their work: a command buffer that is not committed yet.
@protocol RigCommandSink
- (void)record:(std::function<void()>)work;
- (void)retainUntilCompleted:(id)resource;
- (void)encoderEnded;
@end

// What both encoders share: they end once, and before they are released.
@interface RigEncoder : NSObject <MTLCommandEncoder> {
  id<RigCommandSink> _sink;
  BOOL _ended;
  NSString* _label;
}
- (id)initWithSink:(id<RigCommandSink>)sink;
@end

@interface RigComputeEncoder : RigEncoder <MTLComputeCommandEncoder> {
  RigPipeline* _pipeline;
  rig::RecordedDispatch* _next;
  dispatch_queue_t _queue;
  uint64_t _block;
}
// For torch's encoder, which all ops share: it serves the block that now runs on the queue and no other, and what earlier
// blocks bound must not pass for what this one forgot.
- (void)beginBlockOn:(dispatch_queue_t)queue;
@end

@interface RigBlitEncoder : RigEncoder <MTLBlitCommandEncoder>
@end
