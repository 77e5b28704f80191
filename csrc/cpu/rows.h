// Rows of head_dim channels behind any strides, offset and floating dtype, and rows behind packed codes.
#pragma once
#include <ATen/core/Tensor.h>

#include "../ops.h"
#include "tile.h"

namespace int4kv {

// A 4-dimensional tensor [batch, head, token, channel] as a base pointer and strides.
struct Rows {
  char* data;
  int64_t element, batch, head, token, channel, capacity;
  at::ScalarType type;

  explicit Rows(const at::Tensor& x)
      : data(static_cast<char*>(const_cast<void*>(x.const_data_ptr()))),
        element(x.element_size()),
        batch(x.stride(0) * element),
        head(x.stride(1) * element),
        token(x.stride(2) * element),
        channel(x.stride(3) * element),
        capacity(x.size(2)),
        type(x.scalar_type()) {}

  Number number() const {
    return type == at::kFloat ? Number::kFloat32 : type == at::kHalf ? Number::kFloat16 : Number::kBfloat16;
  }
  char* row(int64_t b, int64_t h, int64_t slot) const {
    return data + b * batch + h * head + slot * token;
  }
  template <typename T>
  T& at(int64_t b, int64_t h, int64_t slot, int64_t c) const {
    return *reinterpret_cast<T*>(row(b, h, slot) + c * channel);
  }
};

// float32 <- row of any dtype minus the centre [head_dim], and back (rounded to nearest even) plus the centre; none if null.
void load_row(const Rows& rows, int64_t b, int64_t h, int64_t slot, int64_t head_dim, float* out, const float* centre = nullptr);
void store_row(
    const Rows& rows, int64_t b, int64_t h, int64_t slot, int64_t head_dim, const float* values, const float* centre = nullptr);

// Where keys or values come from: packed codes with scales, or plain rows (no scales). Token t is in slot t % capacity.
struct Source {
  Rows codes;
  std::optional<Rows> scales;
  int64_t groups, bits;
  int codebook;

  Source(const at::Tensor& codes_, const at::Tensor& scales_, int64_t head_dim, int codebook_);
  explicit Source(const at::Tensor& rows) : codes(rows), groups(0), bits(0), codebook(INT4KV_UNIFORM) {}

  // out[head_dim] = a token of one head, dequantised, still centred and rotated.
  void decode(int64_t b, int64_t h, int64_t token, int64_t head_dim, float* out) const;

  // Where the tokens first .. first + count lie; count is at most kTile.
  void locate(int64_t b, int64_t h, int64_t first, int count, StoredTile& tile) const;
};

} // namespace int4kv
