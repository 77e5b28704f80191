#pragma once
#import <Metal/Metal.h>

@interface RigCommandQueue : NSObject <MTLCommandQueue>
@end
