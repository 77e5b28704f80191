// Encoders check what Metal's validation layer would check, and record.
#include "metal_encoder.h"

#include "counters.h"
#include "dispatch_queue.h"
#include "metal_buffer.h"
#include "validation.h"

namespace {

constexpr NSUInteger kMaxBytes = 4096;
constexpr NSUInteger kThreadgroupUnit = 16;

unsigned long product(MTLSize size) {
  return size.width * size.height * size.depth;
}

std::array<uint32_t, 3> narrowed(MTLSize size, const char* what) {
  RIG_CHECK(
      size.width <= UINT32_MAX && size.height <= UINT32_MAX && size.depth <= UINT32_MAX,
      "%s %lux%lux%lu is beyond 32 bits, which Metal cuts off", what, size.width, size.height, size.depth);
  return {static_cast<uint32_t>(size.width), static_cast<uint32_t>(size.height), static_cast<uint32_t>(size.depth)};
}

MTLSize divided_up(MTLSize threads, MTLSize group) {
  return MTLSizeMake(
      (threads.width + group.width - 1) / group.width, (threads.height + group.height - 1) / group.height,
      (threads.depth + group.depth - 1) / group.depth);
}

MTLSize multiplied(MTLSize groups, MTLSize group) {
  return MTLSizeMake(groups.width * group.width, groups.height * group.height, groups.depth * group.depth);
}

void check_index(const char* method, NSUInteger index) {
  RIG_CHECK(index < rig::kBindings, "%s: index %lu; accepted are 0 to %zu", method, index, rig::kBindings - 1);
}

} // namespace

@implementation RigEncoder
@synthesize label = _label;

- (id)initWithSink:(id<RigCommandSink>)sink {
  if ((self = [super init])) _sink = sink;
  rig::counters().encoders++;
  return self;
}

- (void)dealloc {
  RIG_CHECK(_ended, "an encoder was released without endEncoding");
  [_label release];
  [super dealloc];
}

- (void)checkUsable:(const char*)method {
  RIG_CHECK(!_ended, "%s after endEncoding", method);
}

- (void)endEncoding {
  RIG_CHECK(!_ended, "endEncoding after endEncoding");
  _ended = YES;
  [_sink encoderEnded];
}

- (void)pushDebugGroup:(NSString*)name {
}

- (void)popDebugGroup {
}
@end

@implementation RigComputeEncoder
- (id)initWithSink:(id<RigCommandSink>)sink {
  if ((self = [super initWithSink:sink])) _next = new rig::RecordedDispatch;
  return self;
}

- (void)dealloc {
  delete _next;
  [super dealloc];
}

- (void)beginBlockOn:(dispatch_queue_t)queue {
  if (queue->blocks == _block) return;
  _queue = queue;
  _block = queue->blocks;
  _pipeline = nil;
  *_next = rig::RecordedDispatch{};
}

- (void)checkUsable:(const char*)method {
  [super checkUsable:method];
  const bool in_its_block = !_queue || (_queue->is_running_on_this_thread() && _queue->blocks == _block);
  RIG_CHECK(in_its_block, "%s on an encoder that was taken in another block on the queue", method);
}

- (void)setComputePipelineState:(id<MTLComputePipelineState>)pipeline {
  [self checkUsable:"setComputePipelineState"];
  RIG_CHECK(pipeline, "setComputePipelineState: nil");
  _pipeline = (RigPipeline*)pipeline;
  [_sink retainUntilCompleted:_pipeline];
}

- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset atIndex:(NSUInteger)index {
  [self checkUsable:"setBuffer"];
  check_index("setBuffer", index);
  rig::Binding& binding = _next->buffers[index];
  binding = {};
  binding.bound = true;
  if (!buffer) return;
  binding.address = static_cast<char*>(rig_contents((void*)buffer)) + offset;
  RIG_CHECK(
      offset < [buffer length], "setBuffer: offset %lu of index %lu is past the end of a buffer of %lu bytes", offset, index,
      [buffer length]);
  binding.bytes = [buffer length] - offset;
  [_sink retainUntilCompleted:buffer];
}

- (void)setBytes:(const void*)bytes length:(NSUInteger)length atIndex:(NSUInteger)index {
  [self checkUsable:"setBytes"];
  check_index("setBytes", index);
  RIG_CHECK(length > 0 && length <= kMaxBytes, "setBytes: length %lu; accepted are 1 to %lu", length, kMaxBytes);
  const char* first = static_cast<const char*>(bytes);
  rig::Binding& binding = _next->buffers[index];
  binding = {};
  binding.bound = true;
  binding.bytes = length;
  binding.constants = std::make_shared<std::vector<char>>(first, first + length);
}

- (void)setThreadgroupMemoryLength:(NSUInteger)length atIndex:(NSUInteger)index {
  [self checkUsable:"setThreadgroupMemoryLength"];
  check_index("setThreadgroupMemoryLength", index);
  RIG_CHECK(
      length % kThreadgroupUnit == 0, "setThreadgroupMemoryLength: %lu is no multiple of %lu", length, kThreadgroupUnit);
  _next->threadgroup_bytes[index] = length;
}

- (void)dispatchThreads:(MTLSize)threads groups:(MTLSize)groups perGroup:(MTLSize)group {
  const char* name = _next->name().c_str();
  RIG_CHECK(product(threads), "%s: the grid %lux%lux%lu is empty", name, threads.width, threads.height, threads.depth);
  RIG_CHECK(
      product(group) <= _pipeline->_maxThreads, "%s: %lux%lux%lu threads in a threadgroup; the pipeline's maximum is %lu",
      name, group.width, group.height, group.depth, _pipeline->_maxThreads);
  _next->grid = {
      narrowed(group, "the threadgroup"), narrowed(groups, "the number of threadgroups"), narrowed(threads, "the grid")};
  _next->check();
  rig::count_dispatch(_next->name());
  [_sink record:[dispatch = *_next] { dispatch.run(); }];
}

- (void)prepareDispatch:(MTLSize)group {
  [self checkUsable:"dispatch"];
  RIG_CHECK(_pipeline, "dispatch without a pipeline state set in this block");
  _next->instance = *_pipeline->_instance;
  _next->kernel = _pipeline->_kernel;
  const char* name = _next->name().c_str();
  RIG_CHECK(product(group), "%s: the threadgroup %lux%lux%lu is empty", name, group.width, group.height, group.depth);
}

- (void)dispatchThreads:(MTLSize)threads threadsPerThreadgroup:(MTLSize)group {
  [self prepareDispatch:group];
  [self dispatchThreads:threads groups:divided_up(threads, group) perGroup:group];
}

- (void)dispatchThreadgroups:(MTLSize)groups threadsPerThreadgroup:(MTLSize)group {
  [self prepareDispatch:group];
  [self dispatchThreads:multiplied(groups, group) groups:groups perGroup:group];
}

// The encoder is serial: dispatches run one after the other whatever is said here.
- (void)memoryBarrierWithScope:(MTLBarrierScope)scope {
  [self checkUsable:"memoryBarrierWithScope"];
}

- (void)useResource:(id)resource usage:(MTLResourceUsage)usage {
  [self checkUsable:"useResource"];
  [_sink retainUntilCompleted:resource];
}
@end

@implementation RigBlitEncoder
- (void)copyFromBuffer:(id<MTLBuffer>)source
          sourceOffset:(NSUInteger)sourceOffset
              toBuffer:(id<MTLBuffer>)destination
     destinationOffset:(NSUInteger)destinationOffset
                  size:(NSUInteger)size {
  [self checkUsable:"copyFromBuffer"];
  RIG_CHECK(
      sourceOffset + size <= [source length] && destinationOffset + size <= [destination length],
      "copyFromBuffer: %lu bytes from offset %lu of %lu to offset %lu of %lu", size, sourceOffset, [source length],
      destinationOffset, [destination length]);
  [_sink retainUntilCompleted:source];
  [_sink retainUntilCompleted:destination];
  const char* from = static_cast<char*>([source contents]) + sourceOffset;
  char* to = static_cast<char*>([destination contents]) + destinationOffset;
  [_sink record:[=] { memmove(to, from, size); }];
}

- (void)fillBuffer:(id<MTLBuffer>)buffer range:(NSRange)range value:(uint8_t)value {
  [self checkUsable:"fillBuffer"];
  RIG_CHECK(NSMaxRange(range) <= [buffer length], "fillBuffer: up to byte %lu of %lu", NSMaxRange(range), [buffer length]);
  [_sink retainUntilCompleted:buffer];
  char* first = static_cast<char*>([buffer contents]) + range.location;
  [_sink record:[=] { memset(first, value, range.length); }];
}
@end
