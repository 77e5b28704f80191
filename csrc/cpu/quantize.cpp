// quantize: x -> centre -> rotate -> scale -> round -> pack, one pass per row, straight into the cache.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

#include "codebook.h"
#include "planes.h"
#include "rotation.h"
#include "rows.h"

namespace int4kv {
namespace {

constexpr int64_t kRowsPerThread = 32; // about 35 us of work at head_dim 128 (1.1 us a row, AVX2); chosen, not tuned

const c10::Half kNan(INT4KV_FP16_NAN, c10::Half::from_bits());

c10::Half to_fp16(float x) {
  const c10::Half rounded(x);
  return std::isfinite(static_cast<float>(rounded)) ? rounded : kNan;
}

// Everything one tensor's rows need on their way into the cache.
struct Writer {
  Rows x, codes, scales;
  std::optional<Rows> recent;
  const at::Tensor centre;
  const Rotation rotation;
  int64_t position, heads, tokens, head_dim, groups, bits;
  int codebook;
  bool packed;

  Writer(
      const at::Tensor& x_, const Stored& stored, int64_t position_, const OptionalTensor& centre_, const OptionalTensor& rotation_,
      std::string_view codebook_)
      : x(x_), codes(stored.codes), scales(stored.scales),
        centre(centre_ ? centre_->expand({x_.size(0), -1, -1}).contiguous() : at::Tensor()),
        rotation(rotation_, x_.size(3)),
        position(position_), heads(x_.size(1)), tokens(x_.size(2)), head_dim(x_.size(3)),
        groups(0), bits(0), codebook(codebook_of(codebook_)), packed(is_packed(stored.codes)) {
    groups = stored.scales.size(3) / scales_per_group(codebook);
    if (packed) bits = bits_of(stored.codes, head_dim);
    if (stored.recent) recent.emplace(*stored.recent);
  }

  int64_t rows(int64_t batch) const {
    return batch * heads * tokens;
  }

  void write(int64_t index) const {
    const int64_t t = index % tokens, h = index / tokens % heads, b = index / tokens / heads;
    alignas(64) float row[INT4KV_MAX_HEAD_DIM];
    load_row(x, b, h, t, head_dim, row);
    if (centre.defined()) {
      const float* c = centre.const_data_ptr<float>() + (b * heads + h) * head_dim;
      for (int64_t i = 0; i < head_dim; ++i) row[i] -= c[i];
    }
    rotation.apply(row, h, head_dim);
    const int64_t token = position + t;
    if (recent && t >= tokens - recent->capacity) store_row(*recent, b, h, token % recent->capacity, head_dim, row);
    if (packed) {
      write_packed(b, h, token % codes.capacity, row);
    } else {
      store_row(codes, b, h, token % codes.capacity, head_dim, row);
    }
  }

  void write_packed(int64_t b, int64_t h, int64_t slot, const float* row) const {
    uint8_t code[INT4KV_MAX_HEAD_DIM];
    const int64_t group_size = head_dim / groups;
    for (int64_t g = 0; g < groups; ++g) {
      write_scale(b, h, slot, g, encode(row + g * group_size, group_size, bits, codebook, code + g * group_size));
    }
    pack(code, head_dim, bits, reinterpret_cast<uint8_t*>(codes.row(b, h, slot)));
  }

  void write_scale(int64_t b, int64_t h, int64_t slot, int64_t g, GroupScale found) const {
    const int64_t each = scales_per_group(codebook);
    const c10::Half scale = to_fp16(found.scale), minimum = to_fp16(found.minimum);
    const bool broken = std::isnan(static_cast<float>(scale)) || std::isnan(static_cast<float>(minimum));
    scales.at<c10::Half>(b, h, slot, each * g) = broken ? kNan : scale;
    if (each > 1) scales.at<c10::Half>(b, h, slot, each * g + 1) = broken ? kNan : minimum;
  }
};

void quantize(
    const at::Tensor& x, at::Tensor& codes, at::Tensor& scales, int64_t position, const OptionalTensor& centre,
    const OptionalTensor& rotation, const OptionalTensor& recent, std::string_view codebook) {
  check_quantize("x", x, {codes, scales, recent}, position, centre, rotation, codebook);
  const Writer writer(x, {codes, scales, recent}, position, centre, rotation, codebook);
  at::parallel_for(0, writer.rows(x.size(0)), kRowsPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) writer.write(i);
  });
}

void quantize_kv(
    const at::Tensor& k, const at::Tensor& v, at::Tensor& k_codes, at::Tensor& k_scales, at::Tensor& v_codes,
    at::Tensor& v_scales, int64_t position, const OptionalTensor& k_centre, const OptionalTensor& v_centre,
    const OptionalTensor& k_rotation, const OptionalTensor& v_rotation, const OptionalTensor& k_recent,
    const OptionalTensor& v_recent, std::string_view codebook) {
  check_quantize("k", k, {k_codes, k_scales, k_recent}, position, k_centre, k_rotation, codebook);
  check_quantize("v", v, {v_codes, v_scales, v_recent}, position, v_centre, v_rotation, codebook);
  const Writer k_writer(k, {k_codes, k_scales, k_recent}, position, k_centre, k_rotation, codebook);
  const Writer v_writer(v, {v_codes, v_scales, v_recent}, position, v_centre, v_rotation, codebook);
  const int64_t k_rows = k_writer.rows(k.size(0)), v_rows = v_writer.rows(v.size(0));
  at::parallel_for(0, k_rows + v_rows, kRowsPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) i < k_rows ? k_writer.write(i) : v_writer.write(i - k_rows);
  });
}

at::Tensor dequantize(
    const at::Tensor& codes, const at::Tensor& scales, int64_t start, int64_t end, int64_t head_dim,
    const OptionalTensor& centre, const OptionalTensor& rotation, at::ScalarType dtype, std::string_view codebook) {
  check_dequantize({codes, scales, std::nullopt}, start, end, head_dim, centre, rotation, dtype, codebook);
  const int64_t batch = codes.size(0), heads = codes.size(1), tokens = end - start;
  const at::Tensor out = at::empty({batch, heads, tokens, head_dim}, codes.options().dtype(dtype));
  const Rotation back(rotation, head_dim);
  const at::Tensor centres = centre ? centre->expand({batch, -1, -1}).contiguous() : at::Tensor();
  const Source source(codes, scales, head_dim, codebook_of(codebook));
  const Rows rows(out);
  at::parallel_for(0, batch * heads * tokens, kRowsPerThread, [&](int64_t begin, int64_t stop) {
    alignas(64) float row[INT4KV_MAX_HEAD_DIM];
    for (int64_t i = begin; i < stop; ++i) {
      const int64_t t = i % tokens, h = i / tokens % heads, b = i / tokens / heads;
      source.decode(b, h, start + t, 1, head_dim, row);
      back.invert(row, h, head_dim);
      if (centre) {
        const float* c = centres.const_data_ptr<float>() + (b * heads + h) * head_dim;
        for (int64_t j = 0; j < head_dim; ++j) row[j] += c[j];
      }
      store_row(rows, b, h, t, head_dim, row);
    }
  });
  return out;
}

} // namespace

TORCH_LIBRARY_IMPL(int4kv, CPU, m) {
  m.impl("quantize", quantize);
  m.impl("quantize_kv", quantize_kv);
  m.impl("dequantize", dequantize);
}

} // namespace int4kv
