// The names that torch's MPS headers mention.
#pragma once
#import <Metal/Metal.h>

typedef NSArray<NSNumber *> MPSShape;
typedef enum MPSDataType : uint32_t { MPSDataTypeInvalid = 0 } MPSDataType;

@interface MPSKernel : NSObject
@end

@interface MPSCommandBuffer : NSObject <MTLCommandBuffer>
@end

@interface MPSNDArray : NSObject
@end
