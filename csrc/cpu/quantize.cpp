// quantize: x -> centre -> rotate -> codes and scales, row by row, straight into the cache; dequantize: the same way back.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "centre.h"
#include "kernels.h"
#include "rotation.h"
#include "rows.h"

namespace int4kv {
namespace {

// Two threads start with twice as many rows: 128 of head_dim 128 took 54 us on one thread and 36 on two, 64 still 34 and 26 (2 cores of an
// EPYC, AVX2, threads awake).
constexpr int64_t kRowsPerThread = 64;

// Everything one tensor's rows need on their way into the cache.
struct Writer {
  Rows x, codes, scales;
  std::optional<Rows> recent;
  const Centre centre;
  const Rotation rotation;
  int64_t position, heads, tokens, stored_scales;
  Packing packing;
  bool packed;

  Writer(
      const at::Tensor& x_, const Stored& stored, int64_t position_, const OptionalTensor& centre_, const OptionalTensor& rotation_,
      std::string_view codebook)
      : x(x_), codes(stored.codes), scales(stored.scales), centre(centre_), rotation(rotation_, x_.size(3)),
        position(position_), heads(x_.size(1)), tokens(x_.size(2)), stored_scales(stored.scales.size(3)),
        packing{x_.size(3), x_.size(3), 0, codebook_of(codebook)}, packed(is_packed(stored.codes)) {
    if (packed) {
      packing.group_size = packing.head_dim / (stored_scales / scales_per_group(packing.codebook));
      packing.bits = static_cast<int>(bits_of(stored.codes, packing.head_dim));
    }
    if (stored.recent) recent.emplace(*stored.recent);
  }

  int64_t rows(int64_t batch) const {
    return batch * heads * tokens;
  }

  void write(int64_t begin, int64_t end) const {
    for_rows(begin, end, heads, tokens, [this](int64_t b, int64_t h, int64_t t) { write_row(b, h, t); });
  }

  void write_row(int64_t b, int64_t h, int64_t t) const {
    alignas(64) float row[INT4KV_MAX_HEAD_DIM];
    load_row(x, b, h, t, packing.head_dim, row, centre.of(b, h));
    rotation.apply(row, h, packing.head_dim);
    const int64_t token = position + t;
    if (recent && t >= tokens - recent->capacity) store_row(*recent, b, h, token % recent->capacity, packing.head_dim, row);
    packed ? write_packed(b, h, token % codes.capacity, row)
           : store_row(codes, b, h, token % codes.capacity, packing.head_dim, row);
  }

  void write_packed(int64_t b, int64_t h, int64_t slot, const float* row) const {
    uint16_t found[2 * INT4KV_MAX_HEAD_DIM / INT4KV_UNIT];
    kernels().encode(row, packing, reinterpret_cast<uint8_t*>(codes.row(b, h, slot)), found);
    for (int64_t i = 0; i < stored_scales; ++i) scales.at<uint16_t>(b, h, slot, i) = found[i];
  }
};

void quantize(
    const at::Tensor& x, at::Tensor& codes, at::Tensor& scales, int64_t position, const OptionalTensor& centre,
    const OptionalTensor& rotation, const OptionalTensor& recent, std::string_view codebook) {
  check_quantize("x", x, {codes, scales, recent}, position, centre, rotation, codebook);
  const Writer writer(x, {codes, scales, recent}, position, centre, rotation, codebook);
  at::parallel_for(0, writer.rows(x.size(0)), kRowsPerThread, [&](int64_t begin, int64_t end) {
    writer.write(begin, end);
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
    if (begin < k_rows) k_writer.write(begin, std::min(end, k_rows));
    if (end > k_rows) v_writer.write(std::max(begin, k_rows) - k_rows, end - k_rows);
  });
}

at::Tensor dequantize(
    const at::Tensor& codes, const at::Tensor& scales, int64_t start, int64_t end, int64_t head_dim,
    const OptionalTensor& centre, const OptionalTensor& rotation, at::ScalarType dtype, std::string_view codebook) {
  check_dequantize({codes, scales, std::nullopt}, start, end, head_dim, centre, rotation, dtype, codebook);
  const int64_t batch = codes.size(0), heads = codes.size(1), tokens = end - start;
  const at::Tensor out = at::empty({batch, heads, tokens, head_dim}, codes.options().dtype(dtype));
  const Rotation back(rotation, head_dim);
  const Centre centres(centre);
  const Source source(codes, scales, head_dim, codebook_of(codebook));
  const Rows rows(out);
  at::parallel_for(0, batch * heads * tokens, kRowsPerThread, [&](int64_t begin, int64_t stop) {
    alignas(64) float row[INT4KV_MAX_HEAD_DIM];
    for_rows(begin, stop, heads, tokens, [&](int64_t b, int64_t h, int64_t t) {
      source.decode(b, h, start + t, head_dim, row);
      back.invert(row, h, head_dim);
      store_row(rows, b, h, t, head_dim, row, centres.of(b, h));
    });
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
