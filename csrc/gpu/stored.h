// Tensors of the ops as the kernels' parameters.
#pragma once
#include "../ops.h"
#include "backend.h"

namespace int4kv {

// A tensor for a Dispatch: null if there is none.
inline const at::Tensor* or_null(const OptionalTensor& x) {
  return x ? &*x : nullptr;
}

inline at::Tensor or_undefined(const OptionalTensor& x) {
  return x ? *x : at::Tensor();
}

// A ring whose token `position` is the kernel's token 0.
Int4kvStored stored_of(const at::Tensor& codes, const at::Tensor& scales, int64_t position, int64_t head_dim, int codebook);

// Plain rows in a ring: no scales, no codes.
Int4kvStored plain_rows_of(const at::Tensor& rows, int64_t position);

Int4kvRotation rotation_of(const at::Tensor& rotation, int64_t head_dim);

// Any tensor [batch, head, token, channel]; one that is not there has zero strides.
Int4kvRows rows_of(const at::Tensor& x);

// Undefined if there is none.
at::Tensor contiguous_or_none(const OptionalTensor& x);

// [batch or 1, head, channel] as rows that every token and, if need be, every batch row shares.
at::Tensor centre_rows(const OptionalTensor& centre, int64_t batch);

// Codes are read up to 16 bytes at a time, as far as the length of a row allows: a view that is aligned to less is copied.
at::Tensor aligned_codes(const at::Tensor& codes);

} // namespace int4kv
