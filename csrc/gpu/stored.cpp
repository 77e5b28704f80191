#include "stored.h"

#include <algorithm>
#include <cmath>

namespace int4kv {
namespace {

// Where a tensor starts, in bytes; on mps an allocation starts at a page.
int64_t start_of(const at::Tensor& x) {
  return x.is_cuda() ? reinterpret_cast<int64_t>(x.const_data_ptr()) : x.storage_offset() * x.element_size();
}

// Whether the first `dims` dimensions only lead to multiples of so many bytes.
bool is_aligned(const at::Tensor& x, int64_t dims, int64_t bytes) {
  bool aligned = start_of(x) % bytes == 0;
  for (int64_t d = 0; d < dims; ++d) aligned = aligned && (x.stride(d) * x.element_size() % bytes == 0 || x.size(d) <= 1);
  return aligned;
}

// The largest load that every row of codes can be aligned to.
int64_t load_bytes(const at::Tensor& codes) {
  return std::min<int64_t>(16, codes.size(3) & -codes.size(3));
}

bool is_one_after_the_other(const at::Tensor& rows) {
  return rows.stride(2) == rows.size(3) && (rows.stride(3) == 1 || rows.size(3) == 1);
}

} // namespace

Int4kvRows rows_of(const at::Tensor& x) {
  if (!is_there(&x)) return {0, 0, 0, 0, INT4KV_FLOAT32};
  const auto type = x.scalar_type();
  const unsigned code = type == at::kHalf ? INT4KV_FLOAT16 : type == at::kBFloat16 ? INT4KV_BFLOAT16 : INT4KV_FLOAT32;
  return {x.stride(0), x.stride(1), x.stride(2), x.stride(3), code};
}

Int4kvStored plain_rows_of(const at::Tensor& rows, int64_t position) {
  const int64_t capacity = rows.size(2);
  Int4kvStored stored{};
  stored.codes = rows_of(rows);
  stored.bits = INT4KV_PLAIN_BITS;
  stored.capacity = static_cast<unsigned>(capacity);
  stored.first_slot = static_cast<unsigned>(capacity ? position % capacity : 0);
  return stored;
}

Int4kvStored stored_of(const at::Tensor& codes, const at::Tensor& scales, int64_t position, int64_t head_dim, int codebook) {
  Int4kvStored stored = plain_rows_of(codes, position);
  if (!is_packed(codes)) return stored;
  stored.scales = rows_of(scales);
  stored.groups = static_cast<unsigned>(scales.size(3) / scales_per_group(codebook));
  stored.bits = static_cast<unsigned>(bits_of(codes, head_dim));
  stored.codebook = static_cast<unsigned>(codebook);
  stored.aligned = is_one_after_the_other(codes) && is_one_after_the_other(scales) && is_aligned(codes, 2, load_bytes(codes)) &&
      is_aligned(scales, 2, 16);
  return stored;
}

Int4kvRotation rotation_of(const at::Tensor& rotation, int64_t head_dim) {
  if (!rotation.defined()) return {INT4KV_NO_ROTATION, 0, 1.0f, 0};
  if (rotation.numel() > head_dim) return {INT4KV_DENSE, 0, 1.0f, rotation.dim() == 3 ? head_dim * head_dim : 0};
  const int64_t block = rotation.dim() == 1 ? head_dim & -head_dim : rotation.size(1);
  return {INT4KV_HADAMARD, static_cast<unsigned>(block), 1.0f / std::sqrt(static_cast<float>(block)), 0};
}

at::Tensor contiguous_or_none(const OptionalTensor& x) {
  return x ? x->contiguous() : at::Tensor();
}

at::Tensor centre_rows(const OptionalTensor& centre, int64_t batch) {
  return centre ? centre->expand({batch, -1, -1}).unsqueeze(2) : at::Tensor();
}

at::Tensor aligned_codes(const at::Tensor& codes) {
  return !is_packed(codes) || is_aligned(codes, 3, load_bytes(codes)) ? codes : codes.clone(at::MemoryFormat::Contiguous);
}

} // namespace int4kv
