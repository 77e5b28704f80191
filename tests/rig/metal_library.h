#pragma once
#import <Metal/Metal.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernel_instance.h"

// The compiled source; one KernelInstance per set of function constants that was asked for.
@interface RigLibrary : NSObject <MTLLibrary> {
  std::string* _path;
  std::map<std::string, std::shared_ptr<rig::KernelInstance>>* _instances;
}
- (id)initWithPath:(const std::string&)path;
@end

// With a message instead of an instance when the library needs constants that were not given: no pipeline can be made.
@interface RigFunction : NSObject <MTLFunction> {
 @public
  std::shared_ptr<rig::KernelInstance>* _instance;
  std::string* _name;
  std::string* _message;
}
@end

@interface RigPipeline : NSObject <MTLComputePipelineState> {
 @public
  std::shared_ptr<rig::KernelInstance>* _instance;
  int _kernel;
  NSUInteger _maxThreads;
  NSString* _label;
}
- (id)initWithFunction:(RigFunction*)function maxThreads:(NSUInteger)maxThreads label:(NSString*)label;
@end

// nil and an NSError for options that are not for macOS 14, or a source that does not compile.
RigLibrary* rig_new_library(NSString* source, MTLCompileOptions* options, NSError** error);
// nil and an NSError for a function without the constants it needs.
RigPipeline* rig_new_pipeline(id<MTLFunction> function, NSUInteger maxThreads, NSString* label, NSError** error);
void rig_set_error(NSError** error, MTLLibraryError code, const std::string& message);
