// From source text to pipeline: what Metal checks when it compiles, specialises and links a kernel.
#include "metal_library.h"

#include <mutex>

#include "metal_compiler.h"
#include "modes.h"

using rig::FunctionConstant;
using rig::KernelInstance;
using Constants = std::vector<FunctionConstant>;

namespace {

struct CompiledLibrary {
  std::string functions;
  NSUInteger language_version;
  bool fast_math;
};

std::mutex mutex;

std::vector<CompiledLibrary>& compiled_libraries() {
  static auto* all = new std::vector<CompiledLibrary>;
  return *all;
}

size_t size_of(MTLDataType type) {
  switch (type) {
    case MTLDataTypeBool:
    case MTLDataTypeChar:
    case MTLDataTypeUChar:
      return 1;
    case MTLDataTypeHalf:
    case MTLDataTypeShort:
    case MTLDataTypeUShort:
      return 2;
    case MTLDataTypeFloat:
    case MTLDataTypeInt:
    case MTLDataTypeUInt:
      return 4;
    case MTLDataTypeLong:
    case MTLDataTypeULong:
      return 8;
  }
  rig::fail("function constant of MTLDataType %lu; accepted are scalars", static_cast<unsigned long>(type));
}

std::string key_of(const Constants& constants) {
  std::string key;
  for (const auto& constant : constants) {
    key += constant.name + '#' + std::to_string(constant.index) + '=';
    key.append(constant.value.begin(), constant.value.end());
    key += ';';
  }
  return key;
}

} // namespace

void rig_set_error(NSError** error, MTLLibraryError code, const std::string& message) {
  if (!error) return;
  NSString* text = [NSString stringWithUTF8String:message.c_str()];
  NSDictionary* information = [NSDictionary dictionaryWithObject:text forKey:NSLocalizedDescriptionKey];
  *error = [NSError errorWithDomain:@"MTLLibraryErrorDomain" code:code userInfo:information];
}

@implementation MTLCompileOptions
@synthesize preprocessorMacros = _preprocessorMacros, languageVersion = _languageVersion, fastMathEnabled = _fastMathEnabled;

- (id)init {
  if ((self = [super init])) _fastMathEnabled = YES;
  return self;
}

- (void)dealloc {
  [_preprocessorMacros release];
  [super dealloc];
}
@end

@implementation MTLComputePipelineDescriptor
@synthesize label = _label, computeFunction = _computeFunction;
@synthesize maxTotalThreadsPerThreadgroup = _maxTotalThreadsPerThreadgroup;

- (void)dealloc {
  [_label release];
  [_computeFunction release];
  [super dealloc];
}
@end

@implementation MTLFunctionConstantValues
- (id)init {
  if ((self = [super init])) _values = new Constants;
  return self;
}

- (void)dealloc {
  delete static_cast<Constants*>(_values);
  [super dealloc];
}

- (void)add:(FunctionConstant)constant value:(const void*)value type:(MTLDataType)type {
  const char* bytes = static_cast<const char*>(value);
  constant.value.assign(bytes, bytes + size_of(type));
  static_cast<Constants*>(_values)->push_back(constant);
}

- (void)setConstantValue:(const void*)value type:(MTLDataType)type atIndex:(NSUInteger)index {
  FunctionConstant constant;
  constant.index = index;
  [self add:constant value:value type:type];
}

- (void)setConstantValue:(const void*)value type:(MTLDataType)type withName:(NSString*)name {
  FunctionConstant constant;
  constant.name = [name UTF8String];
  [self add:constant value:value type:type];
}

- (const Constants&)constants {
  return *static_cast<Constants*>(_values);
}
@end

@implementation RigLibrary
- (id)initWithPath:(const std::string&)path {
  if ((self = [super init])) {
    _path = new std::string(path);
    _instances = new std::map<std::string, std::shared_ptr<KernelInstance>>;
  }
  return self;
}

- (void)dealloc {
  delete _path;
  delete _instances;
  [super dealloc];
}

- (std::shared_ptr<KernelInstance>)instanceWith:(const Constants&)constants message:(std::string*)message {
  std::lock_guard<std::mutex> lock(mutex);
  auto& found = (*_instances)[key_of(constants)];
  if (!found) found = KernelInstance::open(*_path, constants, message);
  return found;
}

- (NSArray<NSString*>*)functionNames {
  std::string message;
  const auto instance = [self instanceWith:{} message:&message];
  NSMutableArray* names = [NSMutableArray array];
  if (!instance) return names;
  for (const auto& name : instance->names()) [names addObject:[NSString stringWithUTF8String:name.c_str()]];
  return names;
}

- (RigFunction*)functionNamed:(NSString*)name
                           of:(std::shared_ptr<KernelInstance>)instance
                      message:(const std::string&)message {
  if (instance && instance->kernel([name UTF8String]) < 0) return nil;
  RigFunction* function = [RigFunction new];
  function->_instance = new std::shared_ptr<KernelInstance>(instance);
  function->_name = new std::string([name UTF8String]);
  function->_message = new std::string(message);
  return function;
}

- (id<MTLFunction>)newFunctionWithName:(NSString*)name {
  std::string message;
  const auto instance = [self instanceWith:{} message:&message];
  return [self functionNamed:name of:instance message:message];
}

- (id<MTLFunction>)newFunctionWithName:(NSString*)name
                        constantValues:(MTLFunctionConstantValues*)values
                                 error:(NSError**)error {
  std::string message;
  const auto instance = [self instanceWith:[values constants] message:&message];
  if (!instance) {
    rig_set_error(error, MTLLibraryErrorCompileFailure, message);
    return nil;
  }
  RigFunction* function = [self functionNamed:name of:instance message:message];
  if (!function) rig_set_error(error, MTLLibraryErrorFunctionNotFound, std::string("no function ") + [name UTF8String]);
  return function;
}
@end

@implementation RigFunction
- (void)dealloc {
  delete _instance;
  delete _name;
  delete _message;
  [super dealloc];
}

- (NSString*)name {
  return [NSString stringWithUTF8String:_name->c_str()];
}
@end

@implementation RigPipeline
- (id)initWithFunction:(RigFunction*)function maxThreads:(NSUInteger)maxThreads label:(NSString*)label {
  if ((self = [super init])) {
    _instance = new std::shared_ptr<KernelInstance>(*function->_instance);
    _kernel = (*_instance)->kernel(*function->_name);
    const NSUInteger most = rig::modes().max_threads;
    _maxThreads = maxThreads ? std::min(maxThreads, most) : most;
    _label = [label copy];
  }
  return self;
}

- (void)dealloc {
  delete _instance;
  [_label release];
  [super dealloc];
}

- (NSString*)label {
  return _label;
}

- (NSUInteger)maxTotalThreadsPerThreadgroup {
  return _maxThreads;
}

- (NSUInteger)threadExecutionWidth {
  return 32;
}

// Threadgroup variables of the kernel's body are known, and held to the limit, by the executor when it runs.
- (NSUInteger)staticThreadgroupMemoryLength {
  return 0;
}
@end

RigPipeline* rig_new_pipeline(id<MTLFunction> function, NSUInteger maxThreads, NSString* label, NSError** error) {
  RIG_CHECK(function, "a pipeline was asked for with a nil function");
  RigFunction* own = (RigFunction*)function;
  if (!*own->_instance) {
    rig_set_error(error, MTLLibraryErrorCompileFailure, *own->_name + ": " + *own->_message);
    return nil;
  }
  return [[RigPipeline alloc] initWithFunction:own maxThreads:maxThreads label:label];
}

static std::string language_refusal(MTLCompileOptions* options) {
  const NSUInteger version = options ? [options languageVersion] : 0;
  if (version > 0 && version <= MTLLanguageVersion3_1) return "";
  const std::string given = version ? std::to_string(version >> 16) + "." + std::to_string(version & 0xffff) : "not set";
  return "languageVersion is " + given + "; accepted are MTLLanguageVersion3_1, the newest of macOS 14, and older";
}

static rig::MetalSource metal_source(NSString* text, MTLCompileOptions* options) {
  rig::MetalSource source{[text UTF8String], {}};
  NSDictionary* macros = [options preprocessorMacros];
  for (NSString* name in macros) {
    source.macros[[name UTF8String]] = [[[macros objectForKey:name] description] UTF8String];
  }
  return source;
}

RigLibrary* rig_new_library(NSString* source, MTLCompileOptions* options, NSError** error) {
  RIG_CHECK(source, "a library was asked for with a nil source: is its text ASCII?");
  std::string message = language_refusal(options);
  const std::string path = message.empty() ? rig::compile_metal(metal_source(source, options), &message) : "";
  if (path.empty()) {
    rig_set_error(error, MTLLibraryErrorCompileFailure, message);
    return nil;
  }
  RigLibrary* library = [[RigLibrary alloc] initWithPath:path];
  const std::string functions = [[[library functionNames] componentsJoinedByString:@" "] UTF8String];
  std::lock_guard<std::mutex> lock(mutex);
  compiled_libraries().push_back({functions, [options languageVersion], static_cast<bool>([options fastMathEnabled])});
  return library;
}

extern "C" size_t rig_library_count() {
  std::lock_guard<std::mutex> lock(mutex);
  return compiled_libraries().size();
}

extern "C" const char* rig_library(size_t position, uint64_t* language_version, bool* fast_math) {
  std::lock_guard<std::mutex> lock(mutex);
  const auto& library = compiled_libraries().at(position);
  *language_version = library.language_version;
  *fast_math = library.fast_math;
  return library.functions.c_str();
}
