// Rows of head_dim channels behind any strides, offset and floating dtype, and rows behind packed codes.
#pragma once
#include <ATen/core/Tensor.h>

#include "../ops.h"
#include "tile.h"

namespace int4kv {

// Which dimensions of a tensor count batch rows (or pages), heads, tokens and channels; -1: it has none.
struct Axes {
  int batch, head, token, channel;
};
constexpr Axes kCacheAxes{0, 1, 2, 3}, kPageAxes{0, 2, 1, 3}, kTokenAxes{-1, 1, 0, 2};

// Rows of a tensor as a base pointer and strides.
struct Rows {
  char* data;
  int64_t element, batch, head, token, channel, capacity;
  at::ScalarType type;

  explicit Rows(const at::Tensor& x, Axes axes = kCacheAxes)
      : data(static_cast<char*>(const_cast<void*>(x.const_data_ptr()))),
        element(x.element_size()),
        batch(axes.batch < 0 ? 0 : x.stride(axes.batch) * element),
        head(x.stride(axes.head) * element),
        token(x.stride(axes.token) * element),
        channel(x.stride(axes.channel) * element),
        capacity(x.size(axes.token)),
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

// The pages of every sequence: token t of sequence b lies in page at(b, t / page_size), slot t % page_size.
struct BlockTable {
  const int32_t* pages;
  int64_t sequence, step, width;

  explicit BlockTable(const at::Tensor& x)
      : pages(x.const_data_ptr<int32_t>()), sequence(x.stride(0)), step(x.stride(1)), width(x.size(1)) {}

  int64_t at(int64_t b, int64_t i) const {
    return pages[b * sequence + i * step];
  }
};

// Where keys or values come from: packed codes with scales, or plain rows (no scales). Token t of batch row b is in slot t % capacity of
// that row or, where there is a block table, of the page that it names.
struct Source {
  Rows codes;
  std::optional<Rows> scales;
  int64_t groups, bits, row_bytes = 0;
  int codebook;
  std::optional<BlockTable> table;

  Source(const at::Tensor& codes_, const at::Tensor& scales_, int64_t head_dim, int codebook_, Axes axes = kCacheAxes);
  explicit Source(const at::Tensor& rows, Axes axes = kCacheAxes)
      : codes(rows, axes), groups(0), bits(0), row_bytes(rows.size(axes.channel) * rows.element_size()), codebook(INT4KV_UNIFORM) {}

  // Tokens that lie one after the other: `count` slots from `slot` on of one batch row or page.
  struct Run {
    int64_t batch, slot, count;
  };
  Run run(int64_t b, int64_t token) const {
    const int64_t slot = token % codes.capacity;
    return {table ? table->at(b, token / codes.capacity) : b, slot, codes.capacity - slot};
  }

  // out[head_dim] = a token of one head, dequantised, still centred and rotated.
  void decode(int64_t b, int64_t h, int64_t token, int64_t head_dim, float* out) const;

  // Where the tokens first .. first + count lie; count is at most kTile.
  void locate(int64_t b, int64_t h, int64_t first, int count, StoredTile& tile) const;

  // Adds where those tokens lie to what is to be asked for.
  void look_ahead(int64_t b, int64_t h, int64_t first, int count, Ahead& ahead) const;
};

} // namespace int4kv
