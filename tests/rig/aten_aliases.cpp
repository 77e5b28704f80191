#include "aten_aliases.h"

#include <ATen/Context.h>
#include <ATen/core/TensorBody.h>

#include <algorithm>
#include <cstring>

#include "mps_allocator.h"

namespace rig {
namespace {

using at::Tensor;
using c10::DispatchKey;
using c10::Storage;

Tensor tensor_over(Storage storage, DispatchKey key, const Tensor& like) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  auto* implementation = tensor.unsafeGetTensorImpl();
  implementation->set_storage_offset(like.storage_offset());
  implementation->set_sizes_and_strides(like.sizes(), like.strides());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) implementation->set_wrapped_number(true);
  if (like.is_conj()) tensor._set_conj(true);
  if (like.is_neg()) tensor._set_neg(true);
  return tensor;
}

bool same_geometry(const Tensor& a, const Tensor& b) {
  return a.sizes() == b.sizes() && a.strides() == b.strides() && a.storage_offset() == b.storage_offset();
}

} // namespace

void check_mps_dtype(c10::ScalarType dtype) {
  TORCH_CHECK_TYPE(
      dtype != at::kDouble && dtype != at::kComplexDouble, "Cannot convert a MPS Tensor to ", dtype,
      " dtype as the MPS framework doesn't support ", dtype, ". Please use float32 instead.");
}

void replace_memory(c10::StorageImpl* storage, const void* content, size_t content_bytes, size_t bytes) {
  auto data = at::mps::getIMPSAllocator()->allocate(bytes);
  const size_t kept = std::min(content_bytes, bytes);
  if (kept) std::memcpy(rig_contents(data.get()), content, kept);
  storage->set_data_ptr_noswap(std::move(data));
  storage->set_nbytes(bytes);
}

HostAliases::HostAliases() {
  synchronise_stream();
}

Storage HostAliases::host_storage(const Storage& storage) {
  auto found = host_storages_.find(storage.unsafeGetStorageImpl());
  if (found != host_storages_.end()) return found->second;
  auto alias = at::mps::getIMPSAllocator()->getHostAliasStorage(storage);
  auto* key = alias.unsafeGetStorageImpl();
  device_storages_.emplace(key, HostStorage{storage, key->mutable_data()});
  host_storages_.emplace(storage.unsafeGetStorageImpl(), alias);
  return alias;
}

Tensor HostAliases::host(const Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_mps()) return tensor;
  for (const auto& [device_tensor, alias] : pairs_) {
    if (device_tensor.is_same(tensor)) return alias;
  }
  auto alias = tensor_over(host_storage(tensor.storage()), DispatchKey::CPU, tensor);
  pairs_.emplace_back(tensor, alias);
  return alias;
}

Storage HostAliases::device_storage(const Storage& storage) {
  auto found = device_storages_.find(storage.unsafeGetStorageImpl());
  if (found != device_storages_.end()) return found->second.device;
  Storage copy(Storage::use_byte_size_t(), 0, at::mps::getIMPSAllocator(), true);
  replace_memory(copy.unsafeGetStorageImpl(), storage.data(), storage.nbytes(), storage.nbytes());
  return copy;
}

Tensor HostAliases::device(const Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cpu()) return tensor;
  for (const auto& [device_tensor, alias] : pairs_) {
    if (alias.is_same(tensor)) return device_tensor;
  }
  check_mps_dtype(tensor.scalar_type());
  return tensor_over(device_storage(tensor.storage()), DispatchKey::MPS, tensor);
}

void HostAliases::write_back_resized() {
  for (const auto& [alias, made] : device_storages_) {
    if (alias->data() == made.bytes && alias->nbytes() == made.device.nbytes()) continue;
    replace_memory(made.device.unsafeGetStorageImpl(), alias->data(), alias->nbytes(), alias->nbytes());
  }
  for (const auto& [device_tensor, alias] : pairs_) {
    if (same_geometry(device_tensor, alias)) continue;
    device_tensor.unsafeGetTensorImpl()->set_storage_offset(alias.storage_offset());
    device_tensor.unsafeGetTensorImpl()->set_sizes_and_strides(alias.sizes(), alias.strides());
  }
}

} // namespace rig
