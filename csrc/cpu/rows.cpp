#include "rows.h"

#include <algorithm>
#include <cstring>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "codebook.h"
#include "planes.h"

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

Source::Source(const at::Tensor& codes_, const at::Tensor& scales_, int64_t head_dim, int codebook_)
    : codes(codes_), groups(0), bits(0), codebook(codebook_) {
  if (!is_packed(codes_)) return;
  scales.emplace(scales_);
  groups = scales_.size(3) / scales_per_group(codebook);
  bits = bits_of(codes_, head_dim);
}

void Source::decode(int64_t b, int64_t h, int64_t first, int64_t count, int64_t head_dim, float* out) const {
  for (int64_t i = 0; i < count; ++i, out += head_dim) {
    const int64_t slot = (first + i) % codes.capacity;
    scales ? decode_row(b, h, slot, head_dim, out) : load_row(codes, b, h, slot, head_dim, out);
  }
}

namespace {

Element element_of(const Rows& rows) {
  if (rows.type == at::kByte) return Element::kCodes;
  return rows.type == at::kFloat ? Element::kFloat32 : rows.type == at::kHalf ? Element::kFloat16 : Element::kBFloat16;
}

// Pointers to `count` tokens from slot `slot` on, around the end of the ring; those behind them repeat the last.
void point(const Rows& rows, int64_t b, int64_t h, int64_t slot, int count, const uint8_t** to) {
  const auto* base = reinterpret_cast<const uint8_t*>(rows.row(b, h, 0));
  const int before_end = static_cast<int>(std::min<int64_t>(count, rows.capacity - slot));
  for (int i = 0; i < before_end; ++i) to[i] = base + (slot + i) * rows.token;
  for (int i = before_end; i < count; ++i) to[i] = base + (i - before_end) * rows.token;
  for (int i = count; i < kTile; ++i) to[i] = to[count - 1];
}

// Number `index` of each of those tokens.
void gather(const Rows& scales, int64_t b, int64_t h, int64_t slot, int count, int64_t index, uint16_t* to) {
  const char* base = scales.row(b, h, 0) + index * scales.channel;
  const int before_end = static_cast<int>(std::min<int64_t>(count, scales.capacity - slot));
  if (scales.token == 2 && before_end == kTile) {
    std::memcpy(to, base + 2 * slot, 2 * kTile);
    return;
  }
  for (int i = 0; i < kTile; ++i) {
    const int token = std::min(i, count - 1);
    std::memcpy(to + i, base + (token < before_end ? slot + token : token - before_end) * scales.token, 2);
  }
}

} // namespace

void Source::locate(int64_t b, int64_t h, int64_t first, int count, StoredTile& tile) const {
  const int64_t slot = first % codes.capacity, each = scales_per_group(codebook);
  point(codes, b, h, slot, count, tile.rows);
  for (int64_t g = 0; scales && g < groups; ++g) {
    gather(*scales, b, h, slot, count, each * g, tile.scales[g]);
    if (each > 1) gather(*scales, b, h, slot, count, each * g + 1, tile.minima[g]);
  }
  tile.element = element_of(codes);
  tile.ahead = kTile * codes.token;
  tile.channel_stride = codes.channel;
  tile.bits = static_cast<int>(bits);
  tile.codebook = codebook;
  tile.groups = static_cast<int>(groups);
}

void Source::decode_row(int64_t b, int64_t h, int64_t slot, int64_t head_dim, float* out) const {
  uint8_t code[INT4KV_MAX_HEAD_DIM];
  unpack(reinterpret_cast<const uint8_t*>(codes.row(b, h, slot)), head_dim, bits, code);
  const int64_t group_size = head_dim / groups, each = scales_per_group(codebook);
  for (int64_t g = 0; g < groups; ++g) {
    const float scale = scales->at<c10::Half>(b, h, slot, each * g);
    const float minimum = each > 1 ? static_cast<float>(scales->at<c10::Half>(b, h, slot, each * g + 1)) : 0.0f;
    int4kv::decode(code + g * group_size, group_size, bits, codebook, {scale, minimum}, out + g * group_size);
  }
}

} // namespace int4kv
