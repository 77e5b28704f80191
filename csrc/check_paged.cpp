// The checks of the paged ops that need no number read: what tables, slots and lengths hold is for the CPU's ops to check (csrc/cpu).
#include "check_tensors.h"

namespace int4kv {
namespace {

constexpr const char* kRings = "[rings, rows > 0, num_key_value_heads, head_dim]";

void check_1d(const std::string& name, const at::Tensor& x, const c10::SymInt& size, const char* of) {
  TORCH_CHECK_VALUE(
      x.dim() == 1 && x.sym_size(0) == size, name, " has shape ", x.sym_sizes(), "; accepted is [", size, "], ", of);
}

void check_rings(const std::string& name, const OptionalTensor& rings, const Model& model) {
  if (!rings) return;
  check_4d(name, *rings, kRings);
  check_device(name, *rings, model.codes);
  check_real(name, *rings);
  TORCH_CHECK_VALUE(
      rings->sym_size(1) > 0 && rings->sym_size(2) == model.kv_heads && rings->sym_size(3) == model.head_dim, name, " has shape ",
      rings->sym_sizes(), "; accepted is ", kRings, " with ", model.kv_heads, " heads and head_dim ", model.head_dim);
}

void check_as_many_rings(const at::Tensor& k_recent, const at::Tensor& v_recent) {
  TORCH_CHECK_VALUE(
      k_recent.sym_size(0) == v_recent.sym_size(0), "v_recent has ", v_recent.sym_size(0), " rings; accepted are as many as k_recent has, ",
      k_recent.sym_size(0));
}

void check_pages(const std::string& side, const Stored& stored, const c10::SymInt& head_dim, int codebook) {
  check_stored(side, stored, head_dim, codebook, kPageLayout);
  TORCH_CHECK_VALUE(stored.codes.sym_size(1) > 0, side, "codes has page_size 0; accepted is 1 or more");
}

Model model_of(const at::Tensor& codes, const c10::SymInt& head_dim) {
  return {codes, 1, codes.sym_size(2), head_dim};
}

void check_together(const OptionalTensor& x, const char* name, const OptionalTensor& k_recent) {
  TORCH_CHECK_VALUE(
      x.has_value() == k_recent.has_value(), name, " is ", x ? "given" : "None", " and k_recent is ", k_recent ? "given" : "None",
      "; accepted are both or none");
}

void check_incoming(
    const char* name, const at::Tensor& x, const Stored& stored, const OptionalTensor& centre, const OptionalTensor& rotation,
    int codebook) {
  const std::string side = std::string(name) + "_";
  check_real(name, x);
  TORCH_CHECK_VALUE(x.dim() == 3, name, " has shape ", x.sym_sizes(), "; accepted is [tokens, num_key_value_heads, head_dim]");
  check_head_dim(x.sym_size(2));
  check_pages(side, stored, x.sym_size(2), codebook);
  const Model model = model_of(stored.codes, x.sym_size(2));
  check_device(name, x, stored.codes);
  TORCH_CHECK_VALUE(
      x.sym_size(1) == model.kv_heads, name, " has ", x.sym_size(1), " heads; accepted are those of the codes, ", model.kv_heads);
  check_rings(side + "recent", stored.recent, model);
  check_centre(side + "centre", centre, model);
  check_rotation(side + "rotation", rotation, model);
}

} // namespace

void check_quantize_paged(
    const at::Tensor& k, const at::Tensor& v, const Stored& k_stored, const Stored& v_stored, const at::Tensor& slots,
    const OptionalTensor& k_centre, const OptionalTensor& v_centre, const OptionalTensor& k_rotation, const OptionalTensor& v_rotation,
    const OptionalTensor& recent_slots, std::string_view codebook) {
  const int book = codebook_of(codebook);
  check_incoming("k", k, k_stored, k_centre, k_rotation, book);
  check_incoming("v", v, v_stored, v_centre, v_rotation, book);
  check_device("v", v, k);
  TORCH_CHECK_VALUE(v.sym_size(0) == k.sym_size(0), "v has ", v.sym_size(0), " tokens; accepted are as many as k has, ", k.sym_size(0));
  TORCH_CHECK_VALUE(
      v_stored.codes.sym_size(0) == k_stored.codes.sym_size(0) && v_stored.codes.sym_size(1) == k_stored.codes.sym_size(1),
      "v_codes has shape ", v_stored.codes.sym_sizes(), "; accepted are the pages and the page_size of k_codes, ",
      k_stored.codes.sym_sizes());
  check_integers("slots", slots, at::kLong, k);
  check_1d("slots", slots, k.sym_size(0), "one per token");
  check_both_or_none("recent", k_stored.recent, v_stored.recent, kPageLayout);
  check_together(recent_slots, "recent_slots", k_stored.recent);
  if (!recent_slots) return;
  check_as_many_rings(*k_stored.recent, *v_stored.recent);
  check_integers("recent_slots", *recent_slots, at::kLong, k);
  check_1d("recent_slots", *recent_slots, k.sym_size(0), "one per token");
}

void check_attend_paged(
    const at::Tensor& q, const Stored& k, const Stored& v, const PagedBatch& batch, int64_t max_queries, const OptionalTensor& k_rotation,
    const OptionalTensor& v_rotation, const OptionalTensor& v_centre, const c10::SymInt& recent_window, const c10::SymInt& window,
    double softcap, std::string_view codebook) {
  const int book = codebook_of(codebook);
  check_real("q", q);
  TORCH_CHECK_VALUE(q.dim() == 3, "q has shape ", q.sym_sizes(), "; accepted is [tokens, num_heads, head_dim]");
  const auto head_dim = q.sym_size(2);
  check_head_dim(head_dim);
  check_pages("k_", k, head_dim, book);
  check_pages("v_", v, head_dim, book);
  check_rows("v_codes", v.codes, k.codes, kPageLayout);
  check_device("q", q, k.codes);
  TORCH_CHECK_VALUE(
      k.codes.sym_size(1) == v.codes.sym_size(1), "v_codes has page_size ", v.codes.sym_size(1), "; accepted is that of k_codes, ",
      k.codes.sym_size(1));
  const Model model = model_of(k.codes, head_dim);
  TORCH_CHECK_VALUE(
      model.kv_heads > 0 && q.sym_size(1) % model.kv_heads == 0, "q has ", q.sym_size(1),
      " heads; accepted are multiples of num_key_value_heads, ", model.kv_heads);
  check_integers("block_table", batch.block_table, at::kInt, q);
  TORCH_CHECK_VALUE(
      batch.block_table.dim() == 2, "block_table has shape ", batch.block_table.sym_sizes(),
      "; accepted is [sequences, pages of a sequence]");
  const auto sequences = batch.block_table.sym_size(0);
  check_integers("lengths", batch.lengths, at::kInt, q);
  check_1d("lengths", batch.lengths, sequences, "one per sequence of block_table");
  check_integers("query_starts", batch.query_starts, at::kInt, q);
  check_1d("query_starts", batch.query_starts, sequences + 1, "one more than sequences");
  TORCH_CHECK_VALUE(max_queries >= 0, "max_queries is ", max_queries, "; accepted is 0 or more");
  check_rings("k_recent", k.recent, model);
  check_rings("v_recent", v.recent, model);
  check_both_or_none("recent", k.recent, v.recent, kPageLayout);
  check_together(batch.rings, "rings", k.recent);
  check_together(batch.recent_starts, "recent_starts", k.recent);
  if (k.recent) {
    check_as_many_rings(*k.recent, *v.recent);
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

} // namespace int4kv
