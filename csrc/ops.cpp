// Schemas and meta kernels. Backends register their own kernels next to the code: csrc/cpu/*.cpp.
#include "ops.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace int4kv {
namespace {

using c10::SymInt;

void quantize_meta(
    const at::Tensor& x, at::Tensor& codes, at::Tensor& scales, SymInt position, const OptionalTensor& centre,
    const OptionalTensor& rotation, const OptionalTensor& recent, std::string_view codebook) {
  check_quantize("x", x, {codes, scales, recent}, position, centre, rotation, codebook);
}

void quantize_kv_meta(
    const at::Tensor& k, const at::Tensor& v, at::Tensor& k_codes, at::Tensor& k_scales, at::Tensor& v_codes,
    at::Tensor& v_scales, SymInt position, const OptionalTensor& k_centre, const OptionalTensor& v_centre,
    const OptionalTensor& k_rotation, const OptionalTensor& v_rotation, const OptionalTensor& k_recent,
    const OptionalTensor& v_recent, std::string_view codebook) {
  check_quantize("k", k, {k_codes, k_scales, k_recent}, position, k_centre, k_rotation, codebook);
  check_quantize("v", v, {v_codes, v_scales, v_recent}, position, v_centre, v_rotation, codebook);
}

at::Tensor attend_meta(
    const at::Tensor& q, const at::Tensor& k_codes, const at::Tensor& k_scales, const at::Tensor& v_codes,
    const at::Tensor& v_scales, SymInt start, SymInt end, double /*scale*/, const OptionalTensor& k_rotation,
    const OptionalTensor& v_rotation, const OptionalTensor& v_centre, const OptionalTensor& k_recent, const OptionalTensor& v_recent,
    SymInt recent_start, SymInt recent_window, const OptionalTensor& k_sink, const OptionalTensor& v_sink, const OptionalTensor& mask,
    bool /*causal*/, SymInt window, double softcap, std::string_view codebook) {
  check_attend(
      q, {k_codes, k_scales, k_recent, k_sink}, {v_codes, v_scales, v_recent, v_sink}, start, end, k_rotation, v_rotation, v_centre,
      recent_start, recent_window, mask, window, softcap, codebook);
  return at::empty_symint({q.sym_size(0), q.sym_size(2), q.sym_size(1), q.sym_size(3)}, q.options()).transpose(1, 2);
}

at::Tensor dequantize_meta(
    const at::Tensor& codes, const at::Tensor& scales, SymInt start, SymInt end, SymInt head_dim,
    const OptionalTensor& centre, const OptionalTensor& rotation, at::ScalarType dtype, std::string_view codebook) {
  check_dequantize({codes, scales, std::nullopt}, start, end, head_dim, centre, rotation, dtype, codebook);
  return at::empty_symint({codes.sym_size(0), codes.sym_size(1), end - start, head_dim}, codes.options().dtype(dtype));
}

void quantize_paged_meta(
    const at::Tensor& k, const at::Tensor& v, at::Tensor& k_codes, at::Tensor& k_scales, at::Tensor& v_codes, at::Tensor& v_scales,
    const at::Tensor& slots, const OptionalTensor& k_centre, const OptionalTensor& v_centre, const OptionalTensor& k_rotation,
    const OptionalTensor& v_rotation, const OptionalTensor& k_recent, const OptionalTensor& v_recent, const OptionalTensor& recent_slots,
    std::string_view codebook) {
  check_quantize_paged<SymInt>(
      k, v, {k_codes, k_scales, k_recent}, {v_codes, v_scales, v_recent}, slots, k_centre, v_centre, k_rotation, v_rotation, recent_slots,
      codebook);
}

at::Tensor attend_paged_meta(
    const at::Tensor& q, const at::Tensor& k_codes, const at::Tensor& k_scales, const at::Tensor& v_codes, const at::Tensor& v_scales,
    const at::Tensor& block_table, const at::Tensor& lengths, const at::Tensor& query_starts, int64_t max_queries, double /*scale*/,
    const OptionalTensor& k_rotation, const OptionalTensor& v_rotation, const OptionalTensor& v_centre, const OptionalTensor& k_recent,
    const OptionalTensor& v_recent, const OptionalTensor& rings, const OptionalTensor& recent_starts, SymInt recent_window, SymInt window,
    double softcap, std::string_view codebook) {
  check_attend_paged(
      q, {k_codes, k_scales, k_recent}, {v_codes, v_scales, v_recent}, {block_table, lengths, query_starts, rings, recent_starts},
      max_queries, k_rotation, v_rotation, v_centre, recent_window, window, softcap, codebook);
  return at::empty_symint(q.sym_sizes(), q.options());
}

// Kernels that are part of the library need no preparation.
std::vector<std::string> prepare_nothing(
    const at::Tensor& /*example*/, at::IntArrayRef /*head_dims*/, int64_t /*k_bits*/, int64_t /*v_bits*/, std::string_view /*codebook*/,
    bool /*paged*/) {
  return {};
}

} // namespace

TORCH_LIBRARY(int4kv, m) {
  m.def(
      "quantize(Tensor x, Tensor(a!) codes, Tensor(b!) scales, SymInt position, *, Tensor? centre=None, "
      "Tensor? rotation=None, Tensor(c!)? recent=None, str codebook='uniform') -> ()");
  m.def(
      "quantize_kv(Tensor k, Tensor v, Tensor(a!) k_codes, Tensor(b!) k_scales, Tensor(c!) v_codes, Tensor(d!) v_scales, "
      "SymInt position, *, Tensor? k_centre=None, Tensor? v_centre=None, Tensor? k_rotation=None, Tensor? v_rotation=None, "
      "Tensor(e!)? k_recent=None, Tensor(f!)? v_recent=None, str codebook='uniform') -> ()");
  m.def(
      "attend(Tensor q, Tensor k_codes, Tensor k_scales, Tensor v_codes, Tensor v_scales, SymInt start, SymInt end, "
      "float scale, *, Tensor? k_rotation=None, Tensor? v_rotation=None, Tensor? v_centre=None, Tensor? k_recent=None, "
      "Tensor? v_recent=None, SymInt recent_start=0, SymInt recent_window=0, Tensor? k_sink=None, Tensor? v_sink=None, "
      "Tensor? mask=None, bool causal=True, SymInt window=0, "
      "float softcap=0., str codebook='uniform') -> Tensor");
  // Over pages of many sequences; int4kv/reference_paged.py says what each tensor holds, and what is checked where.
  m.def(
      "quantize_paged(Tensor k, Tensor v, Tensor(a!) k_codes, Tensor(b!) k_scales, Tensor(c!) v_codes, Tensor(d!) v_scales, "
      "Tensor slots, *, Tensor? k_centre=None, Tensor? v_centre=None, Tensor? k_rotation=None, Tensor? v_rotation=None, "
      "Tensor(e!)? k_recent=None, Tensor(f!)? v_recent=None, Tensor? recent_slots=None, str codebook='uniform') -> ()");
  m.def(
      "attend_paged(Tensor q, Tensor k_codes, Tensor k_scales, Tensor v_codes, Tensor v_scales, Tensor block_table, Tensor lengths, "
      "Tensor query_starts, int max_queries, float scale, *, Tensor? k_rotation=None, Tensor? v_rotation=None, Tensor? v_centre=None, "
      "Tensor? k_recent=None, Tensor? v_recent=None, Tensor? rings=None, Tensor? recent_starts=None, SymInt recent_window=0, "
      "SymInt window=0, float softcap=0., str codebook='uniform') -> Tensor");
  // Builds the kernels of the example's device ahead of their first use; says where they come from, then their names.
  m.def("prepare(Tensor example, int[] head_dims, int k_bits=4, int v_bits=4, str codebook='uniform', bool paged=False) -> str[]");
  m.def(
      "dequantize(Tensor codes, Tensor scales, SymInt start, SymInt end, SymInt head_dim, *, Tensor? centre=None, "
      "Tensor? rotation=None, ScalarType dtype=float, str codebook='uniform') -> Tensor");
}

TORCH_LIBRARY_IMPL(int4kv, CPU, m) {
  m.impl("prepare", prepare_nothing);
}

TORCH_LIBRARY_IMPL(int4kv, Meta, m) {
  m.impl("prepare", prepare_nothing);
  m.impl("quantize", quantize_meta);
  m.impl("quantize_kv", quantize_kv_meta);
  m.impl("attend", attend_meta);
  m.impl("dequantize", dequantize_meta);
  m.impl("quantize_paged", quantize_paged_meta);
  m.impl("attend_paged", attend_paged_meta);
}

// Codes have no gradient: backward through attend raises instead of going on without one.
TORCH_LIBRARY_IMPL(int4kv, Autograd, m) {
  m.impl("attend", torch::autograd::autogradNotImplementedFallback());
  m.impl("attend_paged", torch::autograd::autogradNotImplementedFallback());
  m.impl("dequantize", torch::autograd::autogradNotImplementedFallback());
}

} // namespace int4kv
