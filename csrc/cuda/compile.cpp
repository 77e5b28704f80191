#include "compile.h"

#include <c10/util/Exception.h>

#include <memory>
#include <type_traits>
#include <vector>

#include "disk_cache.h"
#include "driver.h"
#include "int4kv_cuda_source.h"

namespace int4kv {
namespace {

constexpr int kLeastCapability = 80;  // the matrix units that csrc/cuda/tiles.h asks for

struct Destroy {
  void operator()(nvrtcProgram program) const {
    Nvrtc::shared().destroy(&program);
  }
};
using Program = std::unique_ptr<std::remove_pointer_t<nvrtcProgram>, Destroy>;

// What quantize writes is promised bit for bit: no product is fused into a sum.
bool writes_promised_bits(const Kernel& kernel) {
  return kernel.entry == Entry::kQuantize || kernel.entry == Entry::kDequantize;
}

std::vector<std::string> options_of(const Kernel& kernel, int capability) {
  std::string constants;
  for (const uint32_t constant : {kernel.k_bits, kernel.v_bits, kernel.codebook, kernel.paged, kernel.decode}) constants += std::to_string(constant) + ",";
  return {
      "-std=c++17",
      "-default-device",
      "-arch=sm_" + std::to_string(capability),
      "-DINT4KV_WANTS_" + kernel.name() + "=,",
      "-DINT4KV_FUNCTION_CONSTANTS=" + constants,
      writes_promised_bits(kernel) ? "-fmad=false" : "-fmad=true"};
}

std::string joined(const std::vector<std::string>& options) {
  std::string all;
  for (const std::string& option : options) all += option + "\n";
  return all;
}

std::string log_of(nvrtcProgram program) {
  size_t size = 0;
  Nvrtc::shared().log_size(program, &size);
  std::string log(size, '\0');
  if (size) Nvrtc::shared().log(program, log.data());
  return log.c_str();
}

// The cubin, compiled.
std::string run_nvrtc(const Kernel& kernel, int capability, const std::vector<std::string>& options) {
  const Nvrtc& nvrtc = Nvrtc::shared();
  nvrtcProgram created = nullptr;
  nvrtcResult result = nvrtc.create(&created, kCudaSource, "int4kv.cu", 0, nullptr, nullptr);
  TORCH_CHECK(result == NVRTC_SUCCESS, "int4kv: NVRTC cannot be used: ", nvrtc.error_string(result));
  const Program program(created);
  std::vector<const char*> words;
  for (const std::string& option : options) words.push_back(option.c_str());
  result = nvrtc.compile(created, static_cast<int>(words.size()), words.data());
  TORCH_CHECK(
      result == NVRTC_SUCCESS, "int4kv: the CUDA kernel ", kernel.describe(), " cannot be compiled for sm_", capability, ": ",
      nvrtc.error_string(result), "\n", log_of(created));
  size_t size = 0;
  nvrtc.cubin_size(created, &size);
  std::string cubin(size, '\0');
  nvrtc.cubin(created, cubin.data());
  return cubin;
}

} // namespace

std::string compile(const Kernel& kernel, int capability) {
  TORCH_CHECK(
      capability >= kLeastCapability, "int4kv: the GPU has compute capability ", capability / 10, ".", capability % 10, "; accepted are ",
      kLeastCapability / 10, ".", kLeastCapability % 10, " and newer");
  const std::vector<std::string> options = options_of(kernel, capability);
  int major = 0, minor = 0;
  Nvrtc::shared().version(&major, &minor);
  const std::string made_of = std::to_string(major) + "." + std::to_string(minor) + "\n" + joined(options) + kCudaSource;
  if (auto cubin = read_cached(made_of)) return *cubin;
  std::string cubin = run_nvrtc(kernel, capability, options);
  write_cached(made_of, cubin);
  return cubin;
}

} // namespace int4kv
