// attend: o = R_v^T softmax2(q' K'^T) V', straight from the packed rows; q' = log2(e) * scale * R_k q.
#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include "attention.h"

namespace int4kv {
namespace {

std::optional<Source> plain_source(const OptionalTensor& rows, bool used = true) {
  return rows && used ? std::optional<Source>(Source(*rows)) : std::nullopt;
}

std::optional<Rows> expanded_mask(const OptionalTensor& mask, const at::Tensor& q, int64_t keys) {
  if (!mask) return std::nullopt;
  return Rows(mask->expand({q.size(0), q.size(1), q.size(2), keys}));
}

// [batch, heads, queries, head_dim], a query's heads side by side, as the model goes on with them. Made without the dispatcher, which
// a decode step would meet cold twice more.
at::Tensor output_like(const at::Tensor& q) {
  const int64_t heads = q.size(1), queries = q.size(2), head_dim = q.size(3);
  return at::detail::empty_strided_cpu(
      q.sizes(), {queries * heads * head_dim, head_dim, heads * head_dim, 1}, q.scalar_type());
}

at::Tensor attend(
    const at::Tensor& q, const at::Tensor& k_codes, const at::Tensor& k_scales, const at::Tensor& v_codes,
    const at::Tensor& v_scales, int64_t start, int64_t end, double scale, const OptionalTensor& k_rotation,
    const OptionalTensor& v_rotation, const OptionalTensor& v_centre, const OptionalTensor& k_recent, const OptionalTensor& v_recent,
    int64_t recent_start, int64_t recent_window, const OptionalTensor& k_sink, const OptionalTensor& v_sink, const OptionalTensor& mask,
    bool causal, int64_t window, double softcap, std::string_view codebook) {
  check_attend(
      q, {k_codes, k_scales, k_recent, k_sink}, {v_codes, v_scales, v_recent, v_sink}, start, end, k_rotation, v_rotation, v_centre,
      recent_start, recent_window, mask, window, softcap, codebook);
  const int book = codebook_of(codebook);
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2), head_dim = q.size(3);
  const at::Tensor out = output_like(q);
  Attention attention{
      Rows(q), Rows(out), Source(k_codes, k_scales, head_dim, book), Source(v_codes, v_scales, head_dim, book),
      plain_source(k_recent, recent_window > 0), plain_source(v_recent, recent_window > 0), plain_source(k_sink), plain_source(v_sink),
      expanded_mask(mask, q, end - start), Rotation(k_rotation, head_dim), Rotation(v_rotation, head_dim),
      Centre(v_centre), heads, k_codes.size(1), head_dim, recent_window, window, static_cast<float>(scale), static_cast<float>(softcap),
      causal};
  Sequence sequence{0, 0, queries, start, end, recent_start, 0, 0, 1};
  sequence.splits = splits_for(batch * attention.kv_heads * attention.blocks(queries), sequence.tiles());
  attention.sequences.assign(batch, sequence);
  for (int64_t b = 0; b < batch; ++b) attention.sequences[b].batch = attention.sequences[b].cache = attention.sequences[b].ring = b;
  attention.run();
  return out;
}

} // namespace

TORCH_LIBRARY_IMPL(int4kv, CPU, m) {
  m.impl("attend", attend);
}

} // namespace int4kv
