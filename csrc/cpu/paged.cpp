// quantize_paged and attend_paged: the rows and sequences of a batch over the writer and the attention of the contiguous ops.
//
// A sequence is cut into splits as if it were alone: its result is the same bits in any batch and any pages, and those of attend on a
// cache of batch 1, for the same number of threads.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "tables.h"
#include "writer.h"

namespace int4kv {
namespace {

int64_t slots_of(const at::Tensor& rows) {
  return rows.size(0) * rows.size(1);
}

void quantize_paged(
    const at::Tensor& k, const at::Tensor& v, at::Tensor& k_codes, at::Tensor& k_scales, at::Tensor& v_codes, at::Tensor& v_scales,
    const at::Tensor& slots, const OptionalTensor& k_centre, const OptionalTensor& v_centre, const OptionalTensor& k_rotation,
    const OptionalTensor& v_rotation, const OptionalTensor& k_recent, const OptionalTensor& v_recent, const OptionalTensor& recent_slots,
    std::string_view codebook) {
  const Stored k_stored{k_codes, k_scales, k_recent}, v_stored{v_codes, v_scales, v_recent};
  check_quantize_paged<int64_t>(k, v, k_stored, v_stored, slots, k_centre, v_centre, k_rotation, v_rotation, recent_slots, codebook);
  check_slots("slots", slots, slots_of(k_codes));
  if (recent_slots) check_slots("recent_slots", *recent_slots, slots_of(*k_recent));
  const Writer k_writer(k, k_stored, slots, recent_slots, k_centre, k_rotation, codebook);
  const Writer v_writer(v, v_stored, slots, recent_slots, v_centre, v_rotation, codebook);
  write_both(k_writer, v_writer, 1);
}

Source paged_source(const at::Tensor& codes, const at::Tensor& scales, const at::Tensor& table, int64_t head_dim, int codebook) {
  Source source(codes, scales, head_dim, codebook, kPageAxes);
  source.table.emplace(table);
  return source;
}

std::optional<Source> ring_source(const OptionalTensor& rows, int64_t recent_window) {
  return rows && recent_window > 0 ? std::optional<Source>(Source(*rows, kPageAxes)) : std::nullopt;
}

// Rows of no sequence are 0.
at::Tensor output_for(const at::Tensor& q, const Attention& attention) {
  int64_t queries = 0;
  for (const Sequence& s : attention.sequences) queries += s.queries;
  return queries == q.size(0) ? at::empty(q.sizes(), q.options()) : at::zeros(q.sizes(), q.options());
}

at::Tensor attend_paged(
    const at::Tensor& q, const at::Tensor& k_codes, const at::Tensor& k_scales, const at::Tensor& v_codes, const at::Tensor& v_scales,
    const at::Tensor& block_table, const at::Tensor& lengths, const at::Tensor& query_starts, int64_t max_queries, double scale,
    const OptionalTensor& k_rotation, const OptionalTensor& v_rotation, const OptionalTensor& v_centre, const OptionalTensor& k_recent,
    const OptionalTensor& v_recent, const OptionalTensor& rings, const OptionalTensor& recent_starts, int64_t recent_window,
    int64_t window, double softcap, std::string_view codebook) {
  const PagedBatch batch{block_table, lengths, query_starts, rings, recent_starts};
  check_attend_paged(
      q, {k_codes, k_scales, k_recent}, {v_codes, v_scales, v_recent}, batch, max_queries, k_rotation, v_rotation, v_centre,
      recent_window, window, softcap, codebook);
  const int64_t head_dim = q.size(2);
  const int book = codebook_of(codebook);
  Attention attention{
      Rows(q, kTokenAxes), Rows(q, kTokenAxes), paged_source(k_codes, k_scales, block_table, head_dim, book),
      paged_source(v_codes, v_scales, block_table, head_dim, book), ring_source(k_recent, recent_window),
      ring_source(v_recent, recent_window), std::nullopt, std::nullopt, std::nullopt, Rotation(k_rotation, head_dim),
      Rotation(v_rotation, head_dim), Centre(v_centre), q.size(1), k_codes.size(2), head_dim, recent_window, window,
      static_cast<float>(scale), static_cast<float>(softcap), true};
  add_sequences(batch, q.size(0), max_queries, k_codes.size(0), k_recent ? k_recent->size(0) : 0, attention);
  const at::Tensor out = output_for(q, attention);
  attention.out = Rows(out, kTokenAxes);
  attention.run();
  return out;
}

} // namespace

TORCH_LIBRARY_IMPL(int4kv, CPU, m) {
  m.impl("quantize_paged", quantize_paged);
  m.impl("attend_paged", attend_paged);
}

} // namespace int4kv
