// Every check names the argument, what it was and what is accepted, before anything is read or written.
// Sizes are SymInt so that the meta kernels share them under torch.compile with dynamic shapes.
#include "check_tensors.h"

namespace int4kv {
namespace {

template <typename Int>
void check_exact_rows(Name name, const OptionalTensor& rows, const at::Tensor& codes, const Int& head_dim) {
  if (!rows) return;
  check_rows<Int>(name, *rows, codes, kCacheLayout);
  check_real(name, *rows);
  TORCH_CHECK_VALUE(
      size<Int>(*rows, 3) == head_dim && size<Int>(*rows, 2) > 0, name, " has shape ", rows->sym_sizes(),
      "; accepted is [batch, num_key_value_heads, rows > 0, ", head_dim, "]");
}

template <typename Int>
void check_cache(const char* side, const Stored& stored, const Int& head_dim, int codebook) {
  check_stored(side, stored, head_dim, codebook, kCacheLayout);
  check_exact_rows({side, "recent"}, stored.recent, stored.codes, head_dim);
  check_exact_rows({side, "sink"}, stored.sink, stored.codes, head_dim);
}

template <typename Int>
Model<Int> model_of(const at::Tensor& codes, const Int& head_dim) {
  return {codes, size<Int>(codes, 0), size<Int>(codes, 1), head_dim};
}

template <typename Int>
void check_range(const Stored& stored, const Int& start, const Int& end) {
  TORCH_CHECK_VALUE(start >= 0 && start <= end, "start is ", start, " and end is ", end, "; accepted is 0 <= start <= end");
  TORCH_CHECK_VALUE(
      end - start <= size<Int>(stored.codes, 2), "start ", start, " to end ", end, " spans ", end - start,
      " tokens; accepted are up to the capacity, ", size<Int>(stored.codes, 2));
}

template <typename Int>
void check_mask(const OptionalTensor& mask, const at::Tensor& q, const Int& keys) {
  if (!mask) return;
  check_device("mask", *mask, q);
  TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool, "mask has dtype ", mask->scalar_type(), "; accepted is bool (True = attend)");
  check_4d("mask", *mask, "[batch or 1, num_heads or 1, queries or 1, end - start]");
  const auto fits = [&](int64_t d) { return size<Int>(*mask, d) == 1 || size<Int>(*mask, d) == size<Int>(q, d); };
  TORCH_CHECK_VALUE(
      fits(0) && fits(1) && fits(2), "mask has shape ", mask->sym_sizes(), "; accepted is [", size<Int>(q, 0), " or 1, ",
      size<Int>(q, 1), " or 1, ", size<Int>(q, 2), " or 1, ", keys, "]");
  TORCH_CHECK_VALUE(
      size<Int>(*mask, 3) == keys, "mask has ", size<Int>(*mask, 3), " keys; accepted is end - start, ", keys);
}

} // namespace

template <typename Int>
void check_quantize(
    const char* name, const at::Tensor& x, const Stored& stored, const Int& position,
    const OptionalTensor& centre, const OptionalTensor& rotation, std::string_view codebook) {
  const char* side = *name == 'k' ? "k_" : *name == 'v' ? "v_" : "";
  const int book = codebook_of(codebook);
  check_real(name, x);
  check_4d(name, x, "[batch, num_key_value_heads, tokens, head_dim]");
  const auto head_dim = size<Int>(x, 3);
  check_head_dim(head_dim);
  check_cache(side, stored, head_dim, book);
  check_device(name, x, stored.codes);
  TORCH_CHECK_VALUE(
      size<Int>(x, 0) == size<Int>(stored.codes, 0) && size<Int>(x, 1) == size<Int>(stored.codes, 1), name, " has shape ",
      x.sym_sizes(), "; accepted are the batch and head sizes of the codes, ", stored.codes.sym_sizes());
  TORCH_CHECK_VALUE(
      size<Int>(x, 2) <= size<Int>(stored.codes, 2), name, " has ", size<Int>(x, 2), " tokens; accepted are up to the capacity, ",
      size<Int>(stored.codes, 2));
  TORCH_CHECK_VALUE(position >= 0, "position is ", position, "; accepted is 0 or more");
  check_centre({side, "centre"}, centre, model_of(stored.codes, head_dim));
  check_rotation({side, "rotation"}, rotation, model_of(stored.codes, head_dim));
}

template <typename Int>
void check_attend(
    const at::Tensor& q, const Stored& k, const Stored& v, const Int& start, const Int& end,
    const OptionalTensor& k_rotation, const OptionalTensor& v_rotation, const OptionalTensor& v_centre,
    const Int& recent_start, const Int& recent_window, const OptionalTensor& mask, const Int& window,
    double softcap, std::string_view codebook) {
  const int book = codebook_of(codebook);
  check_real("q", q);
  check_4d("q", q, "[batch, num_heads, queries, head_dim]");
  const auto head_dim = size<Int>(q, 3);
  check_head_dim(head_dim);
  check_cache("k_", k, head_dim, book);
  check_cache("v_", v, head_dim, book);
  check_rows<Int>("v_codes", v.codes, k.codes, kCacheLayout);
  check_device("q", q, k.codes);
  TORCH_CHECK_VALUE(
      size<Int>(k.codes, 2) == size<Int>(v.codes, 2), "v_codes has capacity ", size<Int>(v.codes, 2), "; accepted is that of k_codes, ",
      size<Int>(k.codes, 2));
  TORCH_CHECK_VALUE(
      size<Int>(q, 0) == size<Int>(k.codes, 0), "q has batch size ", size<Int>(q, 0), "; accepted is that of k_codes, ", size<Int>(k.codes, 0));
  TORCH_CHECK_VALUE(
      size<Int>(k.codes, 1) > 0 && size<Int>(q, 1) % size<Int>(k.codes, 1) == 0, "q has ", size<Int>(q, 1),
      " heads; accepted are multiples of num_key_value_heads, ", size<Int>(k.codes, 1));
  check_range(k, start, end);
  check_both_or_none<Int>("recent", k.recent, v.recent, kCacheLayout);
  check_both_or_none<Int>("sink", k.sink, v.sink, kCacheLayout);
  TORCH_CHECK_VALUE(recent_start >= 0, "recent_start is ", recent_start, "; accepted is 0 or more");
  TORCH_CHECK_VALUE(
      !k.recent || end - recent_start <= size<Int>(*k.recent, 2), "recent_start is ", recent_start, " with end ", end,
      "; accepted are at most ", k.recent ? size<Int>(*k.recent, 2) : Int(0), " tokens, the rows of k_recent");
  check_reach(recent_window, window, softcap);
  check_rotation("k_rotation", k_rotation, model_of(k.codes, head_dim));
  check_rotation("v_rotation", v_rotation, model_of(v.codes, head_dim));
  check_centre("v_centre", v_centre, model_of(v.codes, head_dim));
  check_mask(mask, q, end - start);
}

template <typename Int>
void check_dequantize(
    const Stored& stored, const Int& start, const Int& end, const Int& head_dim,
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

#define INT4KV_CHECKS_OF(Int)                                                                                            \
  template void check_quantize(                                                                                           \
      const char*, const at::Tensor&, const Stored&, const Int&, const OptionalTensor&, const OptionalTensor&,            \
      std::string_view);                                                                                                  \
  template void check_attend(                                                                                             \
      const at::Tensor&, const Stored&, const Stored&, const Int&, const Int&, const OptionalTensor&,                     \
      const OptionalTensor&, const OptionalTensor&, const Int&, const Int&, const OptionalTensor&, const Int&, double,    \
      std::string_view);                                                                                                  \
  template void check_dequantize(                                                                                         \
      const Stored&, const Int&, const Int&, const Int&, const OptionalTensor&, const OptionalTensor&, at::ScalarType,    \
      std::string_view);
INT4KV_CHECKS_OF(int64_t)
INT4KV_CHECKS_OF(c10::SymInt)

} // namespace int4kv
