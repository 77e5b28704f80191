// Rows of head_dim channels behind any strides, offset and floating dtype, and rows behind packed codes.
#pragma once
#include <ATen/core/Tensor.h>

#include "../ops.h"

// Hot loops are compiled for several x86-64 levels and picked at load time; elsewhere the baseline has SIMD already.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define INT4KV_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define INT4KV_CLONES
#endif

namespace int4kv {

// 8 numbers that the compiler maps to whatever SIMD registers the target has.
typedef float Lanes __attribute__((vector_size(32), aligned(4)));
constexpr int64_t kLanes = 8;

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

  // out[count, head_dim] = tokens first .. first + count of one head, dequantised, still centred and rotated.
  void decode(int64_t b, int64_t h, int64_t first, int64_t count, int64_t head_dim, float* out) const;

 private:
  void decode_row(int64_t b, int64_t h, int64_t slot, int64_t head_dim, float* out) const;
};

} // namespace int4kv
