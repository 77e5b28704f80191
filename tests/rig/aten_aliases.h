// An mps tensor seen as a CPU tensor over the same bytes, and back. One CPU storage stands for one mps storage during a
// call, so views, in-place ops and out= keep their meaning on the CPU.
#pragma once
#include <ATen/core/Tensor.h>

#include <unordered_map>
#include <utility>
#include <vector>

namespace rig {

// TypeError for the dtypes that mps does not have.
void check_mps_dtype(c10::ScalarType dtype);

class HostAliases {
 public:
  // Waits for the device: its memory is about to be read.
  HostAliases();

  at::Tensor host(const at::Tensor& tensor);
  // The very mps tensor that a CPU tensor stands for, or a view of its storage, or a copy.
  at::Tensor device(const at::Tensor& tensor);
  // Carries over what a CPU kernel did to the size of its out= arguments.
  void write_back_resized();

 private:
  c10::Storage host_storage(const c10::Storage& storage);
  c10::Storage device_storage(const c10::Storage& storage);

  struct HostStorage {
    c10::Storage device;
    void* bytes;  // when the alias was made
  };
  std::unordered_map<c10::StorageImpl*, c10::Storage> host_storages_;
  std::unordered_map<c10::StorageImpl*, HostStorage> device_storages_;
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs_;  // mps tensor, its CPU alias
};

// Gives a storage new memory of `bytes`, with the old content as far as it fits.
void replace_memory(c10::StorageImpl* storage, const void* content, size_t content_bytes, size_t bytes);

} // namespace rig
