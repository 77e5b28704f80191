#include "metal_buffer.h"

#include "validation.h"

@implementation RigBuffer
@synthesize label = _label;

- (id)initWithLength:(NSUInteger)length {
  if ((self = [super init])) _memory = new rig::DeviceMemory(length);
  return self;
}

- (void)dealloc {
  delete _memory;
  [_label release];
  [super dealloc];
}

- (NSUInteger)length {
  return _memory->length();
}

- (void*)contents {
  return _memory->data();
}

- (id<MTLDevice>)device {
  return [MTLCreateSystemDefaultDevice() autorelease];
}

- (MTLStorageMode)storageMode {
  return MTLStorageModeShared;
}
@end

extern "C" void* rig_contents(const void* storage) {
  if (!storage) return nullptr;
  id object = (id)const_cast<void*>(storage);
  RIG_CHECK([object isKindOfClass:[RigBuffer class]], "the storage of an mps tensor does not point to an MTLBuffer");
  return [(RigBuffer*)object contents];
}
