#include "rows.h"

#include "kernels.h"

namespace int4kv {
void load_row(const Rows& rows, int64_t b, int64_t h, int64_t slot, int64_t head_dim, float* out, const float* centre) {
  kernels().load_row(rows.row(b, h, slot), rows.channel, rows.number(), head_dim, centre, out);
}

void store_row(const Rows& rows, int64_t b, int64_t h, int64_t slot, int64_t head_dim, const float* values, const float* centre) {
  kernels().store_row(values, centre, head_dim, rows.number(), rows.channel, rows.row(b, h, slot));
}

Source::Source(const at::Tensor& codes_, const at::Tensor& scales_, int64_t head_dim, int codebook_, Axes axes)
    : codes(codes_, axes), groups(0), bits(0), codebook(codebook_) {
  if (!is_packed(codes_)) return;
  scales.emplace(scales_, axes);
  groups = scales_.size(3) / scales_per_group(codebook);
  bits = bits_of(codes_, head_dim);
}

void Source::decode(int64_t b, int64_t h, int64_t token, int64_t head_dim, float* out) const {
  const auto [row, slot, count] = run(b, token);
  if (!scales) return load_row(codes, row, h, slot, head_dim, out);
  uint16_t scale[2 * INT4KV_MAX_HEAD_DIM / INT4KV_UNIT];
  for (int64_t i = 0; i < groups * scales_per_group(codebook); ++i) scale[i] = scales->at<uint16_t>(row, h, slot, i);
  const Packing by{head_dim, head_dim / groups, static_cast<int>(bits), codebook};
  kernels().decode(reinterpret_cast<const uint8_t*>(codes.row(row, h, slot)), scale, by, out);
}

} // namespace int4kv
