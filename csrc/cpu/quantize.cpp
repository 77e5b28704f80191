// quantize: x -> centre -> rotate -> codes and scales, row by row, straight into the cache; dequantize: the same way back.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>

#include "writer.h"

namespace int4kv {
namespace {

// write(begin, end) of all rows in pieces, which the threads take as they come to them: where cores share their units with somebody else,
// one may be a third slower than the other, and halves would wait for it.
template <typename Write>
void share_rows(int64_t rows, const Write& write) {
  constexpr int64_t kPiecesPerThread = 32;
  const int64_t threads = std::clamp<int64_t>(at::divup(rows, kRowsPerThread), 1, at::get_num_threads());
  const int64_t piece = std::max<int64_t>(rows / (kPiecesPerThread * threads * kRowsTogether), 1) * kRowsTogether;
  std::atomic<int64_t> taken = 0;
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = taken.fetch_add(piece, std::memory_order_relaxed)) < rows;) write(begin, std::min(begin + piece, rows));
  });
}

} // namespace

void write_both(const Writer& k, const Writer& v, int64_t batch) {
  const int64_t k_rows = batch * k.heads * k.tokens, v_rows = batch * v.heads * v.tokens;
  share_rows(k_rows + v_rows, [&](int64_t begin, int64_t end) {
    if (begin < k_rows) k.write(begin, std::min(end, k_rows));
    if (end > k_rows) v.write(std::max(begin, k_rows) - k_rows, end - k_rows);
  });
}

namespace {

void quantize(
    const at::Tensor& x, at::Tensor& codes, at::Tensor& scales, int64_t position, const OptionalTensor& centre,
    const OptionalTensor& rotation, const OptionalTensor& recent, std::string_view codebook) {
  check_quantize("x", x, {codes, scales, recent}, position, centre, rotation, codebook);
  const Writer writer(x, {codes, scales, recent}, position, centre, rotation, codebook);
  share_rows(x.size(0) * writer.heads * writer.tokens, [&](int64_t begin, int64_t end) { writer.write(begin, end); });
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
  write_both(k_writer, v_writer, k.size(0));
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
    for_runs(begin, stop, heads, tokens, tokens, [&](int64_t b, int64_t h, int64_t t, int64_t count) {
      for (const int64_t last = t + count; t < last; ++t) {
        source.decode(b, h, start + t, head_dim, row);
        back.invert(row, h, head_dim);
        store_row(rows, b, h, t, head_dim, row, centres.of(b, h));
      }
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
