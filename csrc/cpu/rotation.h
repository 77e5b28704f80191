// The rotation of rows of one head: y = R x and x = R^T y. R is a randomised Hadamard matrix, given by its signs, or any matrix; of one
// that is not orthonormal the ops take the matrix to write with and, to read with, its inverse transpose.
//
// Randomised Hadamard: y = H (signs * x) / sqrt(n), on blocks of n channels; H is symmetric and its own inverse up to n, so
// x = signs * (H y / sqrt(n)). A dense product adds channel after channel. Both orders are the format's.
#pragma once
#include <ATen/core/Tensor.h>

#include "rows.h"

namespace int4kv {

class Rotation {
 public:
  // None, signs [head_dim] (blocks of the largest power of two dividing it) or [head_dim / n, n], or a matrix [head_dim, head_dim] or
  // [heads, head_dim, head_dim].
  Rotation(const OptionalTensor& rotation, int64_t head_dim);

  // rows [count, head_dim] = R (x - centre) of `count` tokens from t on; no centre: null.
  void load(const Rows& x, int64_t b, int64_t h, int64_t t, int64_t count, int64_t head_dim, const float* centre, float* rows) const;
  void apply(float* x, int64_t head, int64_t head_dim) const;
  void invert(float* x, int64_t head, int64_t head_dim) const;

 private:
  const float* matrix(int64_t head, int64_t head_dim) const;

  c10::MaybeOwned<at::Tensor> by_;
  const float* numbers_;  // of by_; null: no rotation
  int64_t block_;         // 0: by_ is a matrix
};

} // namespace int4kv
