// sample::fault(x, kind): one mistake each, of the kinds that a Mac answers with a crash, a hang or wrong numbers.
#include "sample.h"

#include <ATen/mps/MPSProfiler.h>
#include <torch/library.h>

#include <functional>
#include <map>
#include <memory>

namespace sample {
namespace {

using Encoder = id<MTLComputeCommandEncoder>;

constexpr float kFactor = 2;
const MTLSize kOne = {1, 1, 1};

at::mps::MPSStream* stream() {
  return at::mps::getCurrentMPSStream();
}

id<MTLDevice> device() {
  return at::mps::MPSDevice::getInstance()->device();
}

void in_block(const std::function<void(Encoder)>& work) {
  at::mps::dispatch_sync_with_rethrow(stream()->queue(), ^{
    @autoreleasepool {
      work(stream()->commandEncoder());
    }
  });
}

// A dispatch that is right until `spoil` is done to it.
void in_dispatch(
    const at::Tensor& x, const std::string& kernel, const std::function<void(Encoder)>& spoil, MTLSize groups = kOne,
    MTLSize threads = kOne) {
  id<MTLComputePipelineState> made = pipeline(kernel);
  in_block([&](Encoder encoder) {
    [encoder setComputePipelineState:made];
    bind(encoder, x);
    [encoder setBytes:&kFactor length:sizeof kFactor atIndex:1];
    spoil(encoder);
    [encoder dispatchThreadgroups:groups threadsPerThreadgroup:threads];
  });
}

void nothing(Encoder) {}

void throw_from_plain_block() {
  dispatch_sync(stream()->queue(), ^{
    TORCH_CHECK(false, "thrown in a block");
  });
}

void read_before_synchronising(const at::Tensor& x) {
  in_dispatch(x, "scale", nothing);
  const float* value = static_cast<float*>([buffer_of(x) contents]);
  TORCH_CHECK(false, "unsynchronised value ", *value);
}

void read_after_free(const at::Tensor& x) {
  const volatile float* value = nullptr;
  {
    const at::Tensor copy = x.clone();
    value = static_cast<float*>([buffer_of(copy) contents]);
  }
  TORCH_CHECK(false, "freed value ", static_cast<float>(*value));
}

void describe_pipeline() {
  NSError* error = nil;
  MTLComputePipelineDescriptor* descriptor = [[MTLComputePipelineDescriptor new] autorelease];
  id<MTLLibrary> library = compile("kernel void f(device float* x [[buffer(0)]]) { x[0] = 1; }", MTLLanguageVersion3_1);
  [descriptor setComputeFunction:[[library newFunctionWithName:@"f"] autorelease]];
  [descriptor setLabel:@"labelled"];
  [descriptor setMaxTotalThreadsPerThreadgroup:64];
  id<MTLComputePipelineState> made =
      [device() newComputePipelineStateWithDescriptor:descriptor options:0 reflection:nil error:&error];
  TORCH_CHECK(false, [[made label] UTF8String], " takes ", [made maxTotalThreadsPerThreadgroup], " threads");
}

void compile_constants(MTLDataType type, NSUInteger index) {
  NSError* error = nil;
  const double value = 1;
  MTLFunctionConstantValues* values = [[MTLFunctionConstantValues new] autorelease];
  [values setConstantValue:&value type:type atIndex:index];
  id<MTLLibrary> library = compile(
      "constant float c [[function_constant(0)]];\n"
      "kernel void f(device float* x [[buffer(0)]]) { x[0] = c; }",
      MTLLanguageVersion3_1);
  id<MTLFunction> function = [library newFunctionWithName:@"f" constantValues:values error:&error];
  TORCH_CHECK(function, [[error localizedDescription] UTF8String]);
}

void open_metallib() {
  NSError* error = nil;
  dispatch_data_t data = dispatch_data_create("MTLB", 4, nullptr, DISPATCH_DATA_DESTRUCTOR_DEFAULT);
  TORCH_CHECK([device() newLibraryWithData:data error:&error], [[error localizedDescription] UTF8String]);
}

using Fault = std::function<void(const at::Tensor&)>;

const std::map<std::string, Fault> kBindings = {
    {"unbound", [](auto& x) { in_dispatch(x, "scale", [](Encoder e) { [e setBuffer:nil offset:0 atIndex:1]; }); }},
    {"forgotten", [](auto& x) {
       in_dispatch(x, "scale", nothing);
       in_block([](Encoder encoder) {
         [encoder setComputePipelineState:pipeline("scale")];
         [encoder setBytes:&kFactor length:sizeof kFactor atIndex:1];
         [encoder dispatchThreadgroups:kOne threadsPerThreadgroup:kOne];
       });
     }},
    {"offset", [](auto& x) { in_block([&](Encoder e) { [e setBuffer:buffer_of(x) offset:x.nbytes() atIndex:0]; }); }},
    {"index", [](auto& x) { in_block([&](Encoder e) { [e setBuffer:buffer_of(x) offset:0 atIndex:31]; }); }},
    {"long bytes", [](auto&) {
       const std::vector<char> bytes(4097);
       in_block([&](Encoder encoder) { [encoder setBytes:bytes.data() length:bytes.size() atIndex:1]; });
     }},
    {"threadgroup multiple", [](auto&) { in_block([](Encoder e) { [e setThreadgroupMemoryLength:24 atIndex:0]; }); }},
    {"threadgroup missing", [](auto& x) { in_dispatch(x, "scale_staged", nothing); }},
    {"threadgroup total",
     [](auto& x) { in_dispatch(x, "scale_staged", [](Encoder e) { [e setThreadgroupMemoryLength:32784 atIndex:0]; }); }},
    {"threads", [](auto& x) { in_dispatch(x, "scale", nothing, kOne, MTLSizeMake(32, 33, 1)); }},
    {"empty threadgroup", [](auto& x) { in_dispatch(x, "scale", nothing, kOne, MTLSizeMake(32, 0, 1)); }},
    {"empty grid", [](auto& x) { in_dispatch(x, "scale", nothing, MTLSizeMake(0, 1, 1)); }},
    {"beyond the end", [](auto& x) { in_dispatch(x, "scale", nothing, MTLSizeMake(100000, 1, 1)); }},
    {"just beyond the end", [](auto& x) { in_dispatch(x, "scale", nothing, MTLSizeMake(x.numel() + 1, 1, 1)); }},
    {"no pipeline", [](auto&) { in_block([](Encoder e) { [e dispatchThreadgroups:kOne threadsPerThreadgroup:kOne]; }); }},
};

const std::map<std::string, Fault> kOrder = {
    {"after end", [](auto& x) { in_dispatch(x, "scale", [](Encoder e) { [e endEncoding]; }); }},
    {"commit open", [](auto&) { in_block([](Encoder) { [stream()->commandBuffer() commit]; }); }},
    {"two encoders", [](auto&) { in_block([](Encoder) { [stream()->commandBuffer() computeCommandEncoder]; }); }},
    {"kept encoder", [](auto& x) {
       Encoder kept = nil;
       in_dispatch(x, "scale", [&](Encoder e) { kept = e; });
       [kept dispatchThreadgroups:kOne threadsPerThreadgroup:kOne];
     }},
    {"released", [](auto&) {
       @autoreleasepool {
         [[[device() newCommandQueue] commandBuffer] computeCommandEncoder];
       }
     }},
    {"outside", [](auto&) { stream()->commandEncoder(); }},
    {"deadlock", [](auto& x) { in_block([&](Encoder) { (void)x.cpu(); }); }},
    {"plain throw", [](auto&) { throw_from_plain_block(); }},
    {"rethrow", [](auto&) { in_block([](Encoder) { TORCH_CHECK(false, "thrown in a block"); }); }},
    {"unsynchronised", read_before_synchronising},
    {"freed", read_after_free},
    {"profile", [](auto&) { at::mps::getMPSProfiler().endProfileKernel(pipeline("scale")); }},
};

const std::map<std::string, Fault> kCompilation = {
    {"syntax", [](auto&) { compile("kernel void f(device float* x [[buffer(0)]]) {\n  syntax\n}", MTLLanguageVersion3_1); }},
    {"version missing", [](auto&) { compile("", 0); }},
    {"version new", [](auto&) { compile("", (3 << 16) + 2); }},
    {"constant missing", [](auto&) { pipeline("scale_constant"); }},
    {"constant unknown", [](auto&) { compile_constants(MTLDataTypeFloat, 5); }},
    {"constant size", [](auto&) { compile_constants(MTLDataTypeHalf, 0); }},
    {"unknown kernel", [](auto&) { pipeline("no_such_kernel"); }},
    {"descriptor", [](auto&) { describe_pipeline(); }},
    {"metallib", [](auto&) { open_metallib(); }},
};

void fault(const at::Tensor& x, std::string_view kind) {
  @autoreleasepool {
    for (const auto* faults : {&kBindings, &kOrder, &kCompilation}) {
      const auto found = faults->find(std::string(kind));
      if (found != faults->end()) return found->second(x);
    }
  }
  TORCH_CHECK(false, "no fault '", kind, "'");
}

} // namespace
} // namespace sample

TORCH_LIBRARY_IMPL(sample, MPS, m) {
  m.impl("fault", sample::fault);
}
