#include "rows.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

namespace int4kv {
namespace {

template <typename T>
void load(const char* row, int64_t stride, int64_t n, float* out) {
  if (stride == static_cast<int64_t>(sizeof(T))) {
    for (int64_t c = 0; c < n; ++c) out[c] = static_cast<float>(reinterpret_cast<const T*>(row)[c]);
  } else {
    for (int64_t c = 0; c < n; ++c) out[c] = static_cast<float>(*reinterpret_cast<const T*>(row + c * stride));
  }
}

template <typename T>
void store(char* row, int64_t stride, int64_t n, const float* values) {
  for (int64_t c = 0; c < n; ++c) *reinterpret_cast<T*>(row + c * stride) = static_cast<T>(values[c]);
}

typedef uint8_t Bytes __attribute__((vector_size(8), aligned(1)));
typedef int32_t Integers __attribute__((vector_size(32), aligned(4)));

inline Lanes value(Integers codes, float scale) {
  return scale * (__builtin_convertvector(codes, Lanes) - 7.5f);
}

INT4KV_CLONES void unpack_group(const uint8_t* codes, float scale, int64_t units, float* out) {
  for (int64_t u = 0; u < units; ++u, codes += 16, out += INT4KV_UNIT) {
    for (int half = 0; half < 16; half += kLanes) {
      const Integers bytes = __builtin_convertvector(*reinterpret_cast<const Bytes*>(codes + half), Integers);
      *reinterpret_cast<Lanes*>(out + half) = value(INT4KV_LOW(bytes), scale);
      *reinterpret_cast<Lanes*>(out + 16 + half) = value(INT4KV_HIGH(bytes), scale);
    }
  }
}

} // namespace

void load_row(const Rows& rows, int64_t b, int64_t h, int64_t slot, int64_t head_dim, float* out) {
  const char* row = rows.row(b, h, slot);
  if (rows.type == at::kFloat) return load<float>(row, rows.channel, head_dim, out);
  if (rows.type == at::kHalf) return load<c10::Half>(row, rows.channel, head_dim, out);
  load<c10::BFloat16>(row, rows.channel, head_dim, out);
}

void store_row(const Rows& rows, int64_t b, int64_t h, int64_t slot, int64_t head_dim, const float* values) {
  char* row = rows.row(b, h, slot);
  if (rows.type == at::kFloat) return store<float>(row, rows.channel, head_dim, values);
  if (rows.type == at::kHalf) return store<c10::Half>(row, rows.channel, head_dim, values);
  store<c10::BFloat16>(row, rows.channel, head_dim, values);
}

Source::Source(const at::Tensor& codes_, const at::Tensor& scales_) : codes(codes_), groups(0) {
  if (!is_packed(codes_)) return;
  scales.emplace(scales_);
  groups = scales_.size(3);
}

void Source::decode(int64_t b, int64_t h, int64_t first, int64_t count, int64_t head_dim, float* out) const {
  const int64_t group_size = scales ? head_dim / groups : head_dim;
  for (int64_t i = 0; i < count; ++i, out += head_dim) {
    const int64_t slot = (first + i) % codes.capacity;
    if (!scales) {
      load_row(codes, b, h, slot, head_dim, out);
      continue;
    }
    const auto* bytes = reinterpret_cast<const uint8_t*>(codes.row(b, h, slot));
    for (int64_t g = 0; g < groups; ++g) {
      const float scale = scales->at<c10::Half>(b, h, slot, g);
      unpack_group(bytes + g * group_size / 2, scale, group_size / INT4KV_UNIT, out + g * group_size);
    }
  }
}

} // namespace int4kv
