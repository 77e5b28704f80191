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

INT4KV_CLONES void unpack_units(const uint8_t* codes, const float* scales, int64_t units, int64_t units_per_group, float* out) {
  for (int64_t u = 0; u < units; ++u) {
    const float scale = scales[u / units_per_group];
    const uint8_t* bytes = codes + u * 16;
    float* unit = out + u * INT4KV_UNIT;
    for (int i = 0; i < 16; ++i) unit[i] = scale * (static_cast<float>(INT4KV_LOW(bytes[i])) - 7.5f);
    for (int i = 0; i < 16; ++i) unit[16 + i] = scale * (static_cast<float>(INT4KV_HIGH(bytes[i])) - 7.5f);
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

void unpack_row(const uint8_t* codes, const float* scales, int64_t head_dim, int64_t group_size, float* out) {
  unpack_units(codes, scales, head_dim / INT4KV_UNIT, group_size / INT4KV_UNIT, out);
}

Source::Source(const at::Tensor& codes_, const at::Tensor& scales_) : codes(codes_), groups(0) {
  if (!is_packed(codes_)) return;
  scales.emplace(scales_);
  groups = scales_.size(3);
}

void Source::decode(int64_t b, int64_t h, int64_t first, int64_t count, int64_t head_dim, float* out) const {
  float scale[INT4KV_MAX_HEAD_DIM / INT4KV_UNIT];
  for (int64_t i = 0; i < count; ++i, out += head_dim) {
    const int64_t slot = (first + i) % codes.capacity;
    if (!scales) {
      load_row(codes, b, h, slot, head_dim, out);
      continue;
    }
    for (int64_t g = 0; g < groups; ++g) scale[g] = scales->at<c10::Half>(b, h, slot, g);
    unpack_row(reinterpret_cast<const uint8_t*>(codes.row(b, h, slot)), scale, head_dim, head_dim / groups, out);
  }
}

} // namespace int4kv
