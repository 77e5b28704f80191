// The checks of the paged ops that need no number read: what tables, slots and lengths hold is for the CPU's ops to check (csrc/cpu).
#include "check_tensors.h"

namespace int4kv {
namespace {

constexpr const char* kRings = "[rings, rows > 0, num_key_value_heads, head_dim]";

template <typename Int>
void check_1d(Name name, const at::Tensor& x, const Int& expected, const char* of) {
  TORCH_CHECK_VALUE(
      x.dim() == 1 && size<Int>(x, 0) == expected, name, " has shape ", x.sym_sizes(), "; accepted is [", expected, "], ", of);
}

template <typename Int>
void check_rings(Name name, const OptionalTensor& rings, const Model<Int>& model) {
  if (!rings) return;
  check_4d(name, *rings, kRings);
  check_device(name, *rings, model.codes);
  check_real(name, *rings);
  TORCH_CHECK_VALUE(
      size<Int>(*rings, 1) > 0 && size<Int>(*rings, 2) == model.kv_heads && size<Int>(*rings, 3) == model.head_dim, name, " has shape ",
      rings->sym_sizes(), "; accepted is ", kRings, " with ", model.kv_heads, " heads and head_dim ", model.head_dim);
}

template <typename Int>
void check_as_many_rings(const at::Tensor& k_recent, const at::Tensor& v_recent) {
  TORCH_CHECK_VALUE(
      size<Int>(k_recent, 0) == size<Int>(v_recent, 0), "v_recent has ", size<Int>(v_recent, 0), " rings; accepted are as many as k_recent has, ",
      size<Int>(k_recent, 0));
}

template <typename Int>
void check_pages(const char* side, const Stored& stored, const Int& head_dim, int codebook) {
  check_stored(side, stored, head_dim, codebook, kPageLayout);
  TORCH_CHECK_VALUE(size<Int>(stored.codes, 1) > 0, side, "codes has page_size 0; accepted is 1 or more");
}

template <typename Int>
Model<Int> model_of(const at::Tensor& codes, const Int& head_dim) {
  return {codes, 1, size<Int>(codes, 2), head_dim};
}

void check_together(const OptionalTensor& x, const char* name, const OptionalTensor& k_recent) {
  TORCH_CHECK_VALUE(
      x.has_value() == k_recent.has_value(), name, " is ", x ? "given" : "None", " and k_recent is ", k_recent ? "given" : "None",
      "; accepted are both or none");
}

template <typename Int>
void check_incoming(
    const char* name, const at::Tensor& x, const Stored& stored, const OptionalTensor& centre, const OptionalTensor& rotation,
    int codebook) {
  const char* side = *name == 'k' ? "k_" : "v_";
  check_real(name, x);
  TORCH_CHECK_VALUE(x.dim() == 3, name, " has shape ", x.sym_sizes(), "; accepted is [tokens, num_key_value_heads, head_dim]");
  check_head_dim(size<Int>(x, 2));
  check_pages(side, stored, size<Int>(x, 2), codebook);
  const Model<Int> model = model_of(stored.codes, size<Int>(x, 2));
  check_device(name, x, stored.codes);
  TORCH_CHECK_VALUE(
      size<Int>(x, 1) == model.kv_heads, name, " has ", size<Int>(x, 1), " heads; accepted are those of the codes, ", model.kv_heads);
  check_rings({side, "recent"}, stored.recent, model);
  check_centre({side, "centre"}, centre, model);
  check_rotation({side, "rotation"}, rotation, model);
}

} // namespace

template <typename Int>
void check_quantize_paged(
    const at::Tensor& k, const at::Tensor& v, const Stored& k_stored, const Stored& v_stored, const at::Tensor& slots,
    const OptionalTensor& k_centre, const OptionalTensor& v_centre, const OptionalTensor& k_rotation, const OptionalTensor& v_rotation,
    const OptionalTensor& recent_slots, std::string_view codebook) {
  const int book = codebook_of(codebook);
  check_incoming<Int>("k", k, k_stored, k_centre, k_rotation, book);
  check_incoming<Int>("v", v, v_stored, v_centre, v_rotation, book);
  check_device("v", v, k);
  TORCH_CHECK_VALUE(size<Int>(v, 0) == size<Int>(k, 0), "v has ", size<Int>(v, 0), " tokens; accepted are as many as k has, ", size<Int>(k, 0));
  TORCH_CHECK_VALUE(
      size<Int>(v_stored.codes, 0) == size<Int>(k_stored.codes, 0) && size<Int>(v_stored.codes, 1) == size<Int>(k_stored.codes, 1),
      "v_codes has shape ", v_stored.codes.sym_sizes(), "; accepted are the pages and the page_size of k_codes, ",
      k_stored.codes.sym_sizes());
  check_integers("slots", slots, at::kLong, k);
  check_1d("slots", slots, size<Int>(k, 0), "one per token");
  check_both_or_none<Int>("recent", k_stored.recent, v_stored.recent, kPageLayout);
  check_together(recent_slots, "recent_slots", k_stored.recent);
  if (!recent_slots) return;
  check_as_many_rings<Int>(*k_stored.recent, *v_stored.recent);
  check_integers("recent_slots", *recent_slots, at::kLong, k);
  check_1d("recent_slots", *recent_slots, size<Int>(k, 0), "one per token");
}

template <typename Int>
void check_attend_paged(
    const at::Tensor& q, const Stored& k, const Stored& v, const PagedBatch& batch, int64_t max_queries, const OptionalTensor& k_rotation,
    const OptionalTensor& v_rotation, const OptionalTensor& v_centre, const Int& recent_window, const Int& window,
    double softcap, std::string_view codebook) {
  const int book = codebook_of(codebook);
  check_real("q", q);
  TORCH_CHECK_VALUE(q.dim() == 3, "q has shape ", q.sym_sizes(), "; accepted is [tokens, num_heads, head_dim]");
  const auto head_dim = size<Int>(q, 2);
  check_head_dim(head_dim);
  check_pages("k_", k, head_dim, book);
  check_pages("v_", v, head_dim, book);
  check_rows<Int>("v_codes", v.codes, k.codes, kPageLayout);
  check_device("q", q, k.codes);
  TORCH_CHECK_VALUE(
      size<Int>(k.codes, 1) == size<Int>(v.codes, 1), "v_codes has page_size ", size<Int>(v.codes, 1), "; accepted is that of k_codes, ",
      size<Int>(k.codes, 1));
  const Model<Int> model = model_of(k.codes, head_dim);
  TORCH_CHECK_VALUE(
      model.kv_heads > 0 && size<Int>(q, 1) % model.kv_heads == 0, "q has ", size<Int>(q, 1),
      " heads; accepted are multiples of num_key_value_heads, ", model.kv_heads);
  check_integers("block_table", batch.block_table, at::kInt, q);
  TORCH_CHECK_VALUE(
      batch.block_table.dim() == 2, "block_table has shape ", batch.block_table.sym_sizes(),
      "; accepted is [sequences, pages of a sequence]");
  const auto sequences = size<Int>(batch.block_table, 0);
  check_integers("lengths", batch.lengths, at::kInt, q);
  check_1d("lengths", batch.lengths, sequences, "one per sequence of block_table");
  check_integers("query_starts", batch.query_starts, at::kInt, q);
  check_1d("query_starts", batch.query_starts, sequences + 1, "one more than sequences");
  TORCH_CHECK_VALUE(max_queries >= 0, "max_queries is ", max_queries, "; accepted is 0 or more");
  check_rings("k_recent", k.recent, model);
  check_rings("v_recent", v.recent, model);
  check_both_or_none<Int>("recent", k.recent, v.recent, kPageLayout);
  check_together(batch.rings, "rings", k.recent);
  check_together(batch.recent_starts, "recent_starts", k.recent);
  if (k.recent) {
    check_as_many_rings<Int>(*k.recent, *v.recent);
    check_integers("rings", *batch.rings, at::kInt, q);
    check_1d("rings", *batch.rings, sequences, "one per sequence of block_table");
    check_integers("recent_starts", *batch.recent_starts, at::kInt, q);
    check_1d("recent_starts", *batch.recent_starts, sequences, "one per sequence of block_table");
  }
  check_reach(recent_window, window, softcap);
  check_rotation("k_rotation", k_rotation, model);
  check_rotation("v_rotation", v_rotation, model);
  check_centre("v_centre", v_centre, model);
}

#define INT4KV_CHECKS_OF(Int)                                                                                          \
  template void check_quantize_paged<Int>(                                                                              \
      const at::Tensor&, const at::Tensor&, const Stored&, const Stored&, const at::Tensor&, const OptionalTensor&,     \
      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, std::string_view);    \
  template void check_attend_paged(                                                                                     \
      const at::Tensor&, const Stored&, const Stored&, const PagedBatch&, int64_t, const OptionalTensor&,               \
      const OptionalTensor&, const OptionalTensor&, const Int&, const Int&, double, std::string_view);
INT4KV_CHECKS_OF(int64_t)
INT4KV_CHECKS_OF(c10::SymInt)

} // namespace int4kv
