// quantize_kv and attend at a position that only a tensor knows: what a compiled graph calls, so that it is the same graph for every token.
//
//                 start             length
//    append_kv    |=================|+++++|                 writes behind `length` and moves it on
//    attend_appended                |=================|     reads all up to `length`; nothing newer than a query, nothing outside its window
//
// `length` lies on the CPU: reading it waits for nothing. Both hand over to the ops of the device where the codes are.
#include "signatures.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

namespace int4kv {
namespace {

using c10::SymInt;

template <typename Signature>
c10::TypedOperatorHandle<Signature> op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

void check_length(const at::Tensor& length) {
  TORCH_CHECK_VALUE(
      length.scalar_type() == at::kLong && length.dim() == 0 && length.device().is_cpu(), "length has dtype ", length.scalar_type(),
      ", shape ", length.sym_sizes(), " and is on ", length.device(), "; accepted is one int64 on the CPU");
}

void append_kv(
    const at::Tensor& k, const at::Tensor& v, at::Tensor& k_codes, at::Tensor& k_scales, at::Tensor& v_codes, at::Tensor& v_scales,
    at::Tensor& length, int64_t max_cache_len, const OptionalTensor& k_centre, const OptionalTensor& v_centre,
    const OptionalTensor& k_rotation, const OptionalTensor& v_rotation, const OptionalTensor& k_recent, const OptionalTensor& v_recent,
    std::string_view codebook) {
  static const auto quantize_kv = op<QuantizeKv>("int4kv::quantize_kv");
  check_length(length);
  const int64_t begin = length.item<int64_t>(), end = begin + (k.dim() == 4 ? k.size(2) : 0);
  TORCH_CHECK_VALUE(end <= max_cache_len, "max_cache_len is ", max_cache_len, "; this chunk would make the sequence ", end, " tokens long");
  quantize_kv.call(
      k, v, k_codes, k_scales, v_codes, v_scales, begin, k_centre, v_centre, k_rotation, v_rotation, k_recent, v_recent, codebook);
  length.fill_(end);
}

at::Tensor attend_appended(
    const at::Tensor& q, const at::Tensor& k_codes, const at::Tensor& k_scales, const at::Tensor& v_codes, const at::Tensor& v_scales,
    const at::Tensor& length, double scale, const OptionalTensor& k_rotation, const OptionalTensor& v_rotation,
    const OptionalTensor& v_centre, const OptionalTensor& k_recent, const OptionalTensor& v_recent, int64_t recent_window,
    const OptionalTensor& k_sink, const OptionalTensor& v_sink, const OptionalTensor& mask, int64_t window, double softcap,
    std::string_view codebook) {
  static const auto attend = op<Attend>("int4kv::attend");
  check_length(length);
  const int64_t end = length.item<int64_t>(), queries = q.dim() == 4 ? q.size(2) : 0;
  const int64_t start = window > 0 ? std::max<int64_t>(end - queries - window + 1, 0) : 0;
  const int64_t recent_start = k_recent && k_recent->dim() == 4 ? std::max<int64_t>(end - k_recent->size(2), 0) : 0;
  OptionalTensor visible;
  if (mask) {
    TORCH_CHECK_VALUE(
        mask->dim() == 4 && mask->size(3) >= end, "mask has shape ", mask->sizes(),
        "; accepted is [batch or 1, num_heads or 1, queries or 1, ", end, " or more]: every token from the first on");
    visible = mask->slice(3, start, end);
  }
  return attend.call(
      q, k_codes, k_scales, v_codes, v_scales, start, end, scale, k_rotation, v_rotation, v_centre, k_recent, v_recent, recent_start,
      recent_window, k_sink, v_sink, visible, /*causal=*/!mask, mask ? 0 : window, softcap, codebook);
}

void append_kv_meta(
    const at::Tensor& k, const at::Tensor& v, at::Tensor& k_codes, at::Tensor& k_scales, at::Tensor& v_codes, at::Tensor& v_scales,
    at::Tensor& /*length*/, SymInt /*max_cache_len*/, const OptionalTensor& k_centre, const OptionalTensor& v_centre,
    const OptionalTensor& k_rotation, const OptionalTensor& v_rotation, const OptionalTensor& k_recent, const OptionalTensor& v_recent,
    std::string_view codebook) {
  check_quantize<SymInt>("k", k, {k_codes, k_scales, k_recent}, 0, k_centre, k_rotation, codebook);
  check_quantize<SymInt>("v", v, {v_codes, v_scales, v_recent}, 0, v_centre, v_rotation, codebook);
}

at::Tensor attend_appended_meta(
    const at::Tensor& q, const at::Tensor& k_codes, const at::Tensor& k_scales, const at::Tensor& v_codes, const at::Tensor& v_scales,
    const at::Tensor& /*length*/, double /*scale*/, const OptionalTensor& k_rotation, const OptionalTensor& v_rotation,
    const OptionalTensor& v_centre, const OptionalTensor& k_recent, const OptionalTensor& v_recent, SymInt recent_window,
    const OptionalTensor& k_sink, const OptionalTensor& v_sink, const OptionalTensor& /*mask*/, SymInt window, double softcap,
    std::string_view codebook) {
  check_attend<SymInt>(
      q, {k_codes, k_scales, k_recent, k_sink}, {v_codes, v_scales, v_recent, v_sink}, 0, 0, k_rotation, v_rotation, v_centre, 0,
      recent_window, std::nullopt, window, softcap, codebook);
  return at::empty_symint({q.sym_size(0), q.sym_size(2), q.sym_size(1), q.sym_size(3)}, q.options()).transpose(1, 2);
}

} // namespace

// A CUDA graph would play the first length again and again.
const std::vector<at::Tag> kTags{at::Tag::cudagraph_unsafe};

TORCH_LIBRARY_FRAGMENT(int4kv, m) {
  m.def(
      "append_kv(Tensor k, Tensor v, Tensor(a!) k_codes, Tensor(b!) k_scales, Tensor(c!) v_codes, Tensor(d!) v_scales, "
      "Tensor(g!) length, SymInt max_cache_len, *, Tensor? k_centre=None, Tensor? v_centre=None, Tensor? k_rotation=None, "
      "Tensor? v_rotation=None, Tensor(e!)? k_recent=None, Tensor(f!)? v_recent=None, str codebook='uniform') -> ()",
      kTags);
  m.def(
      "attend_appended(Tensor q, Tensor k_codes, Tensor k_scales, Tensor v_codes, Tensor v_scales, Tensor length, "
      "float scale, *, Tensor? k_rotation=None, Tensor? v_rotation=None, Tensor? v_centre=None, Tensor? k_recent=None, "
      "Tensor? v_recent=None, SymInt recent_window=0, Tensor? k_sink=None, Tensor? v_sink=None, "
      "Tensor? mask=None, SymInt window=0, float softcap=0., str codebook='uniform') -> Tensor",
      kTags);
}

TORCH_LIBRARY_IMPL(int4kv, CompositeExplicitAutograd, m) {
  m.impl("append_kv", append_kv);
  m.impl("attend_appended", attend_appended);
}

TORCH_LIBRARY_IMPL(int4kv, Meta, m) {
  m.impl("append_kv", append_kv_meta);
  m.impl("attend_appended", attend_appended_meta);
}

TORCH_LIBRARY_IMPL(int4kv, Autograd, m) {
  m.impl("attend_appended", torch::autograd::autogradNotImplementedFallback());
}

} // namespace int4kv
