// Every check names the argument, what it was and what is accepted, before anything is read or written.
// Sizes are SymInt so that the meta kernels share them under torch.compile with dynamic shapes.
#include "check_tensors.h"

namespace int4kv {
namespace {

void check_exact_rows(const std::string& name, const OptionalTensor& rows, const at::Tensor& codes, const c10::SymInt& head_dim) {
  if (!rows) return;
  check_rows(name, *rows, codes, kCacheLayout);
  check_real(name, *rows);
  TORCH_CHECK_VALUE(
      rows->sym_size(3) == head_dim && rows->sym_size(2) > 0, name, " has shape ", rows->sym_sizes(),
      "; accepted is [batch, num_key_value_heads, rows > 0, ", head_dim, "]");
}

void check_cache(const std::string& side, const Stored& stored, const c10::SymInt& head_dim, int codebook) {
  check_stored(side, stored, head_dim, codebook, kCacheLayout);
  check_exact_rows(side + "recent", stored.recent, stored.codes, head_dim);
  check_exact_rows(side + "sink", stored.sink, stored.codes, head_dim);
}

Model model_of(const at::Tensor& codes, const c10::SymInt& head_dim) {
  return {codes, codes.sym_size(0), codes.sym_size(1), head_dim};
}

void check_range(const Stored& stored, const c10::SymInt& start, const c10::SymInt& end) {
  TORCH_CHECK_VALUE(start >= 0 && start <= end, "start is ", start, " and end is ", end, "; accepted is 0 <= start <= end");
  TORCH_CHECK_VALUE(
      end - start <= stored.codes.sym_size(2), "start ", start, " to end ", end, " spans ", end - start,
      " tokens; accepted are up to the capacity, ", stored.codes.sym_size(2));
}

void check_mask(const OptionalTensor& mask, const at::Tensor& q, const c10::SymInt& keys) {
  if (!mask) return;
  check_device("mask", *mask, q);
  TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool, "mask has dtype ", mask->scalar_type(), "; accepted is bool (True = attend)");
  check_4d("mask", *mask, "[batch or 1, num_heads or 1, queries or 1, end - start]");
  const auto fits = [&](int64_t d) { return mask->sym_size(d) == 1 || mask->sym_size(d) == q.sym_size(d); };
  TORCH_CHECK_VALUE(
      fits(0) && fits(1) && fits(2), "mask has shape ", mask->sym_sizes(), "; accepted is [", q.sym_size(0), " or 1, ",
      q.sym_size(1), " or 1, ", q.sym_size(2), " or 1, ", keys, "]");
  TORCH_CHECK_VALUE(
      mask->sym_size(3) == keys, "mask has ", mask->sym_size(3), " keys; accepted is end - start, ", keys);
}

} // namespace

void check_quantize(
    const char* name, const at::Tensor& x, const Stored& stored, const c10::SymInt& position,
    const OptionalTensor& centre, const OptionalTensor& rotation, std::string_view codebook) {
  const std::string side = name == std::string_view("x") ? "" : std::string(name) + "_";
  const int book = codebook_of(codebook);
  check_real(name, x);
  check_4d(name, x, "[batch, num_key_value_heads, tokens, head_dim]");
  const auto head_dim = x.sym_size(3);
  check_head_dim(head_dim);
  check_cache(side, stored, head_dim, book);
  check_device(name, x, stored.codes);
  TORCH_CHECK_VALUE(
      x.sym_size(0) == stored.codes.sym_size(0) && x.sym_size(1) == stored.codes.sym_size(1), name, " has shape ",
      x.sym_sizes(), "; accepted are the batch and head sizes of the codes, ", stored.codes.sym_sizes());
  TORCH_CHECK_VALUE(
      x.sym_size(2) <= stored.codes.sym_size(2), name, " has ", x.sym_size(2), " tokens; accepted are up to the capacity, ",
      stored.codes.sym_size(2));
  TORCH_CHECK_VALUE(position >= 0, "position is ", position, "; accepted is 0 or more");
  check_centre(side + "centre", centre, model_of(stored.codes, head_dim));
  check_rotation(side + "rotation", rotation, model_of(stored.codes, head_dim));
}

void check_attend(
    const at::Tensor& q, const Stored& k, const Stored& v, const c10::SymInt& start, const c10::SymInt& end,
    const OptionalTensor& k_rotation, const OptionalTensor& v_rotation, const OptionalTensor& v_centre,
    const c10::SymInt& recent_start, const c10::SymInt& recent_window, const OptionalTensor& mask, const c10::SymInt& window,
    double softcap, std::string_view codebook) {
  const int book = codebook_of(codebook);
  check_real("q", q);
  check_4d("q", q, "[batch, num_heads, queries, head_dim]");
  const auto head_dim = q.sym_size(3);
  check_head_dim(head_dim);
  check_cache("k_", k, head_dim, book);
  check_cache("v_", v, head_dim, book);
  check_rows("v_codes", v.codes, k.codes, kCacheLayout);
  check_device("q", q, k.codes);
  TORCH_CHECK_VALUE(
      k.codes.sym_size(2) == v.codes.sym_size(2), "v_codes has capacity ", v.codes.sym_size(2), "; accepted is that of k_codes, ",
      k.codes.sym_size(2));
  TORCH_CHECK_VALUE(
      q.sym_size(0) == k.codes.sym_size(0), "q has batch size ", q.sym_size(0), "; accepted is that of k_codes, ", k.codes.sym_size(0));
  TORCH_CHECK_VALUE(
      k.codes.sym_size(1) > 0 && q.sym_size(1) % k.codes.sym_size(1) == 0, "q has ", q.sym_size(1),
      " heads; accepted are multiples of num_key_value_heads, ", k.codes.sym_size(1));
  check_range(k, start, end);
  check_both_or_none("recent", k.recent, v.recent, kCacheLayout);
  check_both_or_none("sink", k.sink, v.sink, kCacheLayout);
  TORCH_CHECK_VALUE(recent_start >= 0, "recent_start is ", recent_start, "; accepted is 0 or more");
  TORCH_CHECK_VALUE(
      !k.recent || end - recent_start <= k.recent->sym_size(2), "recent_start is ", recent_start, " with end ", end,
      "; accepted are at most ", k.recent ? k.recent->sym_size(2) : c10::SymInt(0), " tokens, the rows of k_recent");
  check_reach(recent_window, window, softcap);
  check_rotation("k_rotation", k_rotation, model_of(k.codes, head_dim));
  check_rotation("v_rotation", v_rotation, model_of(v.codes, head_dim));
  check_centre("v_centre", v_centre, model_of(v.codes, head_dim));
  check_mask(mask, q, end - start);
}

void check_dequantize(
    const Stored& stored, const c10::SymInt& start, const c10::SymInt& end, const c10::SymInt& head_dim,
    const OptionalTensor& centre, const OptionalTensor& rotation, at::ScalarType dtype, std::string_view codebook) {
  check_head_dim(head_dim);
  check_cache("", stored, head_dim, codebook_of(codebook));
  check_range(stored, start, end);
  check_centre("centre", centre, model_of(stored.codes, head_dim));
  check_rotation("rotation", rotation, model_of(stored.codes, head_dim));
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, "dtype is ", dtype,
      "; accepted are float32, float16 and bfloat16");
}

} // namespace int4kv
