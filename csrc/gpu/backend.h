// What a GPU gives to the ops of this folder: csrc/mps on Apple Silicon, csrc/cuda on NVIDIA. A build has at most one of them.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "kernel.h"

namespace int4kv {

// That a kernel binds.
constexpr size_t kMaxTensors = 21;

// In threadgroups.
struct Grid {
  uint32_t x, y, z;
};

inline bool is_empty(const Grid& grid) {
  return uint64_t(grid.x) * grid.y * grid.z == 0;
}

// One kernel: tensors at buffers 0, 1, ..., then its parameter struct. A tensor that is not there (null, undefined or empty) is one
// that the kernel will not touch.
struct Dispatch {
  Kernel kernel;
  c10::SmallVector<const at::Tensor*, kMaxTensors> tensors;
  const void* parameters;
  size_t parameter_bytes;
  Grid threadgroups;
};

inline bool is_there(const at::Tensor* x) {
  return x && x->defined() && x->numel() > 0;
}

// From so many query rows on attend_matrix does less work than attend_simd.
extern const int64_t kMatrixRows;

// How many threadgroups of an attention kernel the device of a tensor holds at once.
int64_t resident_threadgroups(const Kernel& kernel, const at::Tensor& on);

// How far the tokens of a call of an attention kernel are split at most.
Int4kvSplitting splitting_of(const Kernel& kernel);

// Whether the device of a tensor has the large threadgroups of a kernel, ...
bool has_large(const Kernel& kernel, const at::Tensor& on);

// ... and a merge of so many splits is better off with them.
bool is_large_merge(int64_t splits);

// One after the other, on the current stream of the first tensor's device, without waiting. A grid of no threadgroups is left out.
void encode(std::initializer_list<Dispatch> dispatches);

// Builds those kernels that the device of a tensor does not have yet. Raises RuntimeError with the compiler's words.
void build(const std::vector<Kernel>& kernels, const at::Tensor& on);

// Where the kernels of the device come from, then those built so far.
std::vector<std::string> describe_kernels(const at::Tensor& on);

// The ops, for the backend to register under its key.
void register_attend(torch::Library& library);
void register_quantize(torch::Library& library);  // and quantize_kv, dequantize
void register_prepare(torch::Library& library);

} // namespace int4kv
