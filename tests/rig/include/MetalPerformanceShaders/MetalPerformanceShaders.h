#pragma once
#import <Metal/Metal.h>

// A command buffer that torch may commit and carry on with: it replaces the buffer it wraps.
@interface MPSCommandBuffer : NSObject <MTLCommandBuffer> {
  id<MTLCommandBuffer> _wrapped;
  id<MTLCommandQueue> _queue;
}
+ (instancetype)commandBufferFromCommandQueue:(id<MTLCommandQueue>)queue;
- (id<MTLCommandBuffer>)commandBuffer;
- (void)commitAndContinue;
@end
