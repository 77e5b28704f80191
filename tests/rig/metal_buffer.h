#pragma once
#import <Metal/Metal.h>

#include "device_memory.h"

@interface RigBuffer : NSObject <MTLBuffer> {
  rig::DeviceMemory* _memory;
  NSString* _label;
}
- (id)initWithLength:(NSUInteger)length;
@end

// The bytes of the MTLBuffer that a tensor's storage points to; aborts when it points to something else.
extern "C" void* rig_contents(const void* storage);
