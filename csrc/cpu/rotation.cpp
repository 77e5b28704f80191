#include "rotation.h"

#include "kernels.h"

namespace int4kv {
namespace {

int64_t block_of(const at::Tensor& by, int64_t head_dim) {
  if (!by.defined() || by.numel() != head_dim) return 0;
  return by.dim() == 1 ? head_dim & -head_dim : by.size(1);
}

} // namespace

Rotation::Rotation(const OptionalTensor& rotation, int64_t head_dim)
    : by_(rotation ? rotation->expect_contiguous() : c10::MaybeOwned<at::Tensor>()),
      numbers_(rotation ? by_->const_data_ptr<float>() : nullptr), block_(block_of(*by_, head_dim)) {}

const float* Rotation::matrix(int64_t head, int64_t head_dim) const {
  return numbers_ + (by_->dim() == 3 ? head * head_dim * head_dim : 0);
}

void Rotation::load(
    const Rows& x, int64_t b, int64_t h, int64_t t, int64_t count, int64_t head_dim, const float* centre, float* rows) const {
  if (numbers_ && block_ > 0) {
    return kernels().load_rotated(x.row(b, h, t), x.token, x.channel, x.number(), count, head_dim, centre, block_, numbers_, rows);
  }
  for (int64_t i = 0; i < count; ++i, rows += head_dim) {
    load_row(x, b, h, t + i, head_dim, rows, centre);
    apply(rows, h, head_dim);
  }
}

void Rotation::apply(float* x, int64_t head, int64_t head_dim) const {
  if (!numbers_) return;
  if (block_ == 0) return kernels().multiply(x, head_dim, matrix(head, head_dim));
  kernels().rotate(x, head_dim, block_, numbers_);
}

void Rotation::invert(float* x, int64_t head, int64_t head_dim) const {
  if (!numbers_) return;
  if (block_ == 0) return kernels().multiply_transposed(x, head_dim, matrix(head, head_dim));
  kernels().unrotate(x, head_dim, block_, numbers_);
}

} // namespace int4kv
