// at::mps::MPSStream: one encoder and one command buffer shared by all ops, as in torch.
#include <ATen/mps/MPSStream.h>

#include <exception>

#include "counters.h"
#include "dispatch_queue.h"
#include "metal_encoder.h"
#include "validation.h"

namespace at::mps {

MPSStream::MPSStream(Stream stream) : _stream(stream) {
  _commandQueue = [MPSDevice::getInstance()->device() newCommandQueue];
  _serialQueue = dispatch_queue_create("metal gpu stream", DISPATCH_QUEUE_SERIAL);
}

MPSStream::~MPSStream() {
  [_commandQueue release];
  dispatch_release(_serialQueue);
}

id<MTLDevice> MPSStream::device() const {
  return MPSDevice::getInstance()->device();
}

MPSCommandBuffer* MPSStream::commandBuffer() {
  @autoreleasepool {
    if (!_commandBuffer) _commandBuffer = [[MPSCommandBuffer commandBufferFromCommandQueue:_commandQueue] retain];
  }
  return _commandBuffer;
}

id<MTLComputeCommandEncoder> MPSStream::commandEncoder() {
  RIG_CHECK(
      _serialQueue->is_running_on_this_thread(),
      "commandEncoder() outside a block on the stream's queue: all threads share the encoder, take it inside the block");
  @autoreleasepool {
    if (!_commandEncoder) _commandEncoder = [[commandBuffer() computeCommandEncoder] retain];
  }
  [(RigComputeEncoder*)_commandEncoder beginBlockOn:_serialQueue];
  return _commandEncoder;
}

void MPSStream::endKernelCoalescing() {
  if (!_commandEncoder) return;
  [_commandEncoder endEncoding];
  [_commandEncoder release];
  _commandEncoder = nil;
}

void MPSStream::synchronize(SyncType type) {
  endKernelCoalescing();
  switch (type) {
    case SyncType::NONE:
      return;
    case SyncType::COMMIT:
      return flush();
    case SyncType::COMMIT_AND_WAIT:
      rig::counters().synchronisations++;
      return commitAndWait();
    case SyncType::COMMIT_AND_CONTINUE:
      return commitAndContinue();
    case SyncType::COMMIT_ADAPTIVE:
      return commit();
  }
}

void MPSStream::commit() {
  commitAndContinue();
}

void MPSStream::commitAndWait() {
  if (!_commandBuffer) return;
  [_commandBuffer commit];
  [_commandBuffer waitUntilCompleted];
  [_commandBuffer release];
  _commandBuffer = nil;
}

void MPSStream::commitAndContinue() {
  @autoreleasepool {
    [_commandBuffer commitAndContinue];
  }
}

void MPSStream::flush() {
  [_commandBuffer commit];
  [_commandBuffer release];
  _commandBuffer = nil;
}

void MPSStream::addCompletedHandler(MTLCommandBufferHandler handler) {
  dispatch_sync(_serialQueue, ^{
    [commandBuffer() addCompletedHandler:handler];
  });
}

void MPSStream::copy(
    id<MTLBuffer> source, id<MTLBuffer> destination, size_t length, size_t source_offset, size_t destination_offset,
    uint64_t, SyncType type) {
  dispatch_sync(_serialQueue, ^{
    @autoreleasepool {
      endKernelCoalescing();
      id<MTLBlitCommandEncoder> encoder = [commandBuffer() blitCommandEncoder];
      [encoder copyFromBuffer:source
                 sourceOffset:source_offset
                     toBuffer:destination
            destinationOffset:destination_offset
                         size:length];
      [encoder endEncoding];
      synchronize(type);
    }
  });
}

void MPSStream::copy_and_sync(
    id<MTLBuffer> source, id<MTLBuffer> destination, size_t length, size_t source_offset, size_t destination_offset,
    bool non_blocking, uint64_t profile_id) {
  const auto type = non_blocking ? SyncType::COMMIT : SyncType::COMMIT_AND_WAIT;
  copy(source, destination, length, source_offset, destination_offset, profile_id, type);
}

MPSStream* MPSStreamImpl::_stream = nullptr;

MPSStream* MPSStreamImpl::getInstance() {
  static auto* one = new MPSStream(Stream(Stream::UNSAFE, Device(DeviceType::MPS, 0), 0));
  return one;
}

MPSStream* getDefaultMPSStream() {
  return MPSStreamImpl::getInstance();
}

MPSStream* getCurrentMPSStream() {
  return getDefaultMPSStream();
}

void dispatch_sync_with_rethrow(dispatch_queue_t queue, void (^block)()) {
  __block std::exception_ptr error;
  dispatch_sync(queue, ^{
    try {
      block();
    } catch (...) {
      error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

} // namespace at::mps
