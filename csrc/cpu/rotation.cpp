// The sums' orders are the format's: a * b + c stays two roundings.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "rotation.h"

#include <algorithm>
#include <cmath>

#include "rows.h"

namespace int4kv {
namespace {

// Butterflies 1, 2, 4, ... apart, in this order: the order is part of the format.
INT4KV_CLONES void hadamard(float* x, int64_t head_dim, int64_t block) {
  const float norm = 1.0f / std::sqrt(static_cast<float>(block));
  for (int64_t half = 1; half < block; half *= 2) {
    for (int64_t i = 0; i < head_dim; i += 2 * half) {
      for (int64_t j = i; j < i + half; ++j) {
        const float a = x[j], b = x[j + half];
        x[j] = a + b;
        x[j + half] = a - b;
      }
    }
  }
  for (int64_t c = 0; c < head_dim; ++c) x[c] *= norm;
}

void multiply(float* x, const float* signs, int64_t head_dim) {
  for (int64_t c = 0; c < head_dim; ++c) x[c] *= signs[c];
}

// y[c] = sum over j of matrix[c * row + j * column] * x[j]
void multiply(float* x, const float* matrix, int64_t row, int64_t column, int64_t head_dim) {
  float y[INT4KV_MAX_HEAD_DIM] = {};
  for (int64_t j = 0; j < head_dim; ++j) {
    for (int64_t c = 0; c < head_dim; ++c) y[c] = y[c] + matrix[c * row + j * column] * x[j];
  }
  std::copy_n(y, head_dim, x);
}

int64_t block_of(const at::Tensor& by, int64_t head_dim) {
  if (!by.defined() || by.numel() != head_dim) return 0;
  return by.dim() == 1 ? head_dim & -head_dim : by.size(1);
}

} // namespace

Rotation::Rotation(const OptionalTensor& rotation, int64_t head_dim)
    : by_(rotation ? rotation->contiguous() : at::Tensor()), block_(block_of(by_, head_dim)) {}

const float* Rotation::matrix(int64_t head, int64_t head_dim) const {
  return by_.const_data_ptr<float>() + (by_.dim() == 3 ? head * head_dim * head_dim : 0);
}

void Rotation::apply(float* x, int64_t head, int64_t head_dim) const {
  if (!by_.defined()) return;
  if (block_ == 0) return multiply(x, matrix(head, head_dim), head_dim, 1, head_dim);
  multiply(x, by_.const_data_ptr<float>(), head_dim);
  hadamard(x, head_dim, block_);
}

void Rotation::invert(float* x, int64_t head, int64_t head_dim) const {
  if (!by_.defined()) return;
  if (block_ == 0) return multiply(x, matrix(head, head_dim), 1, head_dim, head_dim);
  hadamard(x, head_dim, block_);
  multiply(x, by_.const_data_ptr<float>(), head_dim);
}

} // namespace int4kv
