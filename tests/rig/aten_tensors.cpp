// Making, viewing, resizing and copying mps tensors.
#include <ATen/EmptyTensor.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include "aten_aliases.h"
#include "mps_allocator.h"

namespace {

using namespace at;

constexpr auto kMPSKey = c10::DispatchKeySet(c10::DispatchKey::MPS);

c10::Allocator* allocator() {
  return at::mps::getIMPSAllocator();
}

ScalarType checked_dtype(std::optional<ScalarType> dtype) {
  const auto chosen = c10::dtype_or_default(dtype);
  rig::check_mps_dtype(chosen);
  return chosen;
}

Tensor empty(
    IntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device>,
    std::optional<bool> pinned, std::optional<MemoryFormat> format) {
  TORCH_CHECK(!c10::pinned_memory_or_default(pinned), "Only dense CPU tensors can be pinned");
  return at::detail::empty_generic(size, allocator(), kMPSKey, checked_dtype(dtype), format);
}

Tensor empty_strided(
    IntArrayRef size, IntArrayRef stride, std::optional<ScalarType> dtype, std::optional<Layout>, std::optional<Device>,
    std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, allocator(), kMPSKey, checked_dtype(dtype));
}

void grow(c10::StorageImpl* storage, size_t bytes) {
  rig::synchronise_stream();
  rig::replace_memory(storage, rig_contents(storage->data()), storage->nbytes(), bytes);
}

const Tensor& resize(const Tensor& self, IntArrayRef size, std::optional<MemoryFormat> format) {
  auto* tensor = self.unsafeGetTensorImpl();
  auto* storage = tensor->unsafe_storage().unsafeGetStorageImpl();
  tensor->set_sizes_contiguous(size);
  const size_t needed = (tensor->storage_offset() + tensor->numel()) * tensor->itemsize();
  if (tensor->numel() && needed > storage->nbytes()) grow(storage, needed);
  if (format && *format != MemoryFormat::Preserve) tensor->empty_tensor_restride(*format);
  return self;
}

Tensor& set_storage(Tensor& self, Storage source, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_storage_keep_dtype(std::move(source));
  tensor->set_storage_offset(offset);
  if (stride.size() == size.size()) {
    tensor->set_sizes_and_strides(size, stride);
  } else {
    tensor->set_sizes_contiguous(size);
  }
  return self;
}

Tensor& set_whole_storage(Tensor& self, Storage source) {
  const auto elements = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_storage(self, std::move(source), 0, {elements}, {1});
}

Tensor& set_nothing(Tensor& self) {
  return set_storage(self, Storage(Storage::use_byte_size_t(), 0, allocator(), true), 0, {0}, {1});
}

Tensor& copy(Tensor& self, const Tensor& source, bool) {
  if (self.is_same(source)) return self;
  rig::HostAliases aliases;
  aliases.host(self).copy_(aliases.host(source));
  return self;
}

Tensor copy_from(const Tensor& source, const Tensor& destination, bool non_blocking) {
  Tensor self = destination;
  return copy(self, source.expand_as(destination), non_blocking);
}

Tensor copy_from_and_resize(const Tensor& source, const Tensor& destination) {
  destination.resize_(source.sizes());
  return copy_from(source, destination, false);
}

} // namespace

TORCH_LIBRARY_IMPL(aten, MPS, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("resize_", resize);
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("set_.source_Tensor", TORCH_FN(at::native::set_tensor_));
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("set_", set_nothing);
  m.impl("copy_", copy);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
}
