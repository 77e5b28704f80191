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

// What a large block is compiled for.
std::vector<std::string> large_options(const Kernel& kernel, int capability) {
  const std::string simdgroups = std::to_string(kernel.simdgroups()) + "u";
  if (kernel.entry == Entry::kMerge) return {"-DINT4KV_MERGE_SIMDGROUPS=" + simdgroups};
  return {"-DINT4KV_SIMDGROUPS=" + simdgroups, "-DINT4KV_SHARED_BYTES=" + std::to_string(large_shared_bytes(capability))};
}

std::vector<std::string> options_of(const Kernel& kernel, int capability) {
  std::string constants;
  for (const uint32_t constant : {kernel.k_bits, kernel.v_bits, kernel.codebook, kernel.paged, kernel.decode}) constants += std::to_string(constant) + ",";
  std::vector<std::string> options = {
      "-std=c++17",
      "-default-device",
      "-arch=sm_" + std::to_string(capability),
      "-DINT4KV_WANTS_" + kernel.name() + "=,",
      "-DINT4KV_FUNCTION_CONSTANTS=" + constants,
      writes_promised_bits(kernel) ? "-fmad=false" : "-fmad=true"};
  if (!kernel.large) return options;
  for (std::string& option : large_options(kernel, capability)) options.push_back(std::move(option));
  return options;
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

int large_shared_bytes(int capability) {
  const bool has_227_kib = capability >= 90 && capability < 120, has_163_kib = capability == 80 || capability == 87;
  return has_227_kib ? 227 * 1024 : has_163_kib ? 163 * 1024 : 0;
}

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
