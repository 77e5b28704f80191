#include "stored.h"

#include <cmath>

namespace int4kv {

Int4kvStored stored_of(const at::Tensor& codes, const at::Tensor& scales, int64_t position) {
  const int64_t capacity = codes.size(2);
  Int4kvStored stored{};
  stored.codes = rows_of(codes);
  stored.scales = rows_of(scales);
  stored.groups = static_cast<unsigned>(is_packed(codes) ? scales.size(3) : 0);
  stored.capacity = static_cast<unsigned>(capacity);
  stored.first_slot = static_cast<unsigned>(capacity ? position % capacity : 0);
  return stored;
}

Int4kvRotation rotation_of(const OptionalTensor& rotation, int64_t head_dim) {
  if (!rotation) return {INT4KV_NO_ROTATION, 0, 1.0f};
  if (rotation->dim() == 1) return {INT4KV_HADAMARD, 0, 1.0f / std::sqrt(static_cast<float>(head_dim & -head_dim))};
  return {INT4KV_DENSE, rotation->dim() == 3 ? head_dim * head_dim : 0, 1.0f};
}

at::Tensor centre_rows(const OptionalTensor& centre, int64_t batch) {
  return centre ? centre->expand({batch, -1, -1}).unsqueeze(2) : at::Tensor();
}

at::Tensor aligned_codes(const at::Tensor& codes) {
  bool aligned = codes.storage_offset() % 16 == 0;
  for (int64_t d = 0; d < 3; ++d) aligned = aligned && (codes.stride(d) % 16 == 0 || codes.size(d) <= 1);
  return aligned || !is_packed(codes) ? codes : codes.clone(at::MemoryFormat::Contiguous);
}

} // namespace int4kv
