// attend on mps: one dispatch, or two when the tokens are split; and prepare, which builds the kernels ahead of the first token.
#include <ATen/mps/MPSDevice.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

#include "pipelines.h"
#include "plan.h"
#include "stored.h"

namespace int4kv {
namespace {

constexpr double kLog2e = 1.44269504088896340736;

int to_int(int64_t x) {
  return static_cast<int>(std::clamp<int64_t>(x, 0, 1 << 30));
}

// The kernels count tokens from `start`.
void describe_tokens(
    Int4kvAttend& p, int64_t start, int64_t end, const OptionalTensor& recent, int64_t recent_start, int64_t recent_window,
    int64_t window) {
  TORCH_CHECK(end - start <= 1 << 30, "int4kv: attend over ", end - start, " tokens; accepted on mps are up to 2^30");
  p.keys = static_cast<unsigned>(end - start);
  p.window = to_int(window);
  p.recent_window = to_int(recent_window);
  p.recent_from = recent && recent_window > 0 ? to_int(std::clamp(recent_start, start, end) - start) : to_int(end - start);
}

AttendShape shape_of(
    const at::Tensor& q, const at::Tensor& k_codes, const at::Tensor& k_scales, const at::Tensor& v_codes,
    const at::Tensor& v_scales) {
  const bool packed = is_packed(k_codes) && is_packed(v_codes);
  return {q.size(0), k_codes.size(1), q.size(1) / k_codes.size(1), q.size(2), q.size(3),
          packed && k_scales.size(3) == 1 && v_scales.size(3) == 1};
}

at::Tensor attend(
    const at::Tensor& q, const at::Tensor& k_codes, const at::Tensor& k_scales, const at::Tensor& v_codes,
    const at::Tensor& v_scales, int64_t start, int64_t end, double scale, const OptionalTensor& k_rotation,
    const OptionalTensor& v_rotation, const OptionalTensor& k_recent, const OptionalTensor& v_recent, int64_t recent_start,
    int64_t recent_window, const OptionalTensor& mask, bool causal, int64_t window, double softcap, std::string_view codebook) {
  check_attend(
      q, {k_codes, k_scales, k_recent}, {v_codes, v_scales, v_recent}, start, end, k_rotation, v_rotation, recent_start,
      recent_window, mask, window, softcap, codebook);
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2), head_dim = q.size(3), keys = end - start;
  const at::Tensor out = at::empty({batch, queries, heads, head_dim}, q.options()).transpose(1, 2);
  if (out.numel() == 0) return out;

  Int4kvAttend p{};
  describe_tokens(p, start, end, k_recent, recent_start, recent_window, window);
  const int64_t exact_from = start + p.recent_from;
  const at::Tensor keys_in = aligned_codes(k_codes), values_in = aligned_codes(v_codes);
  const at::Tensor seen = mask ? mask->expand({batch, heads, queries, keys}) : at::Tensor();
  p.q = rows_of(q);
  p.out = rows_of(out);
  p.mask = rows_of(seen);
  p.has_mask = seen.defined();
  p.k = stored_of(keys_in, k_scales, start);
  p.v = stored_of(values_in, v_scales, start);
  if (k_recent) p.k_recent = stored_of(*k_recent, *k_recent, exact_from);
  if (v_recent) p.v_recent = stored_of(*v_recent, *v_recent, exact_from);
  p.k_rotation = rotation_of(k_rotation, head_dim);
  p.v_rotation = rotation_of(v_rotation, head_dim);
  p.heads = static_cast<unsigned>(heads);
  p.kv_heads = static_cast<unsigned>(k_codes.size(1));
  p.queries = static_cast<unsigned>(queries);
  p.head_dim = static_cast<unsigned>(head_dim);
  p.causal = causal;
  p.softcap = static_cast<float>(softcap);
  p.scale = static_cast<float>(softcap > 0 ? scale : scale * kLog2e);

  const AttendShape shape = shape_of(q, k_codes, k_scales, v_codes, v_scales);
  const int64_t visible = window > 0 && window < keys ? std::min(keys, window + queries) : keys;
  const AttendPlan plan = plan_attend(shape, visible, at::mps::MPSDevice::getInstance()->getCoreCount());
  p.blocks = static_cast<unsigned>(plan.blocks);
  p.splits = static_cast<unsigned>(plan.splits);
  const int64_t partials = plan.splits > 1 ? batch * heads * queries * plan.splits : 0;
  const auto scratch = q.options().dtype(at::kFloat);
  const at::Tensor partial = at::empty({partials, head_dim}, scratch), statistics = at::empty({partials, 2}, scratch);
  const at::Tensor k_by = k_rotation ? k_rotation->contiguous() : at::Tensor();
  const at::Tensor v_by = v_rotation ? v_rotation->contiguous() : at::Tensor();

  const MTLSize grid = MTLSizeMake(plan.splits, shape.kv_heads * plan.blocks, batch);
  const MTLSize merge_grid = MTLSizeMake(plan.splits > 1 ? batch * heads * queries : 0, 1, 1);
  encode({
      {plan.kernel,
       {q, keys_in, k_scales, values_in, v_scales, or_none(k_recent), or_none(v_recent), k_by, v_by, seen, out, partial, statistics},
       &p, sizeof p, grid, INT4KV_SIMDGROUPS},
      {"merge", {partial, statistics, v_by, out}, &p, sizeof p, merge_grid, INT4KV_MERGE_SIMDGROUPS},
  });
  return out;
}

std::vector<std::string> prepare(const at::Tensor& /*example*/, at::IntArrayRef head_dims) {
  auto& pipelines = Pipelines::shared();
  for (const char* kernel : {"attend_simd_1", "attend_simd_2", "merge"}) pipelines.find(kernel);
  for (const int64_t head_dim : head_dims) {
    const std::string suffix = "_" + std::to_string(head_dim);
    pipelines.find("quantize" + suffix);
    pipelines.find("dequantize" + suffix);
    if (has_matrix_kernel(head_dim)) pipelines.find("attend_matrix" + suffix);
  }
  return pipelines.describe();
}

} // namespace

TORCH_LIBRARY_IMPL(int4kv, MPS, m) {
  m.impl("attend", attend);
  m.impl("prepare", prepare);
}

} // namespace int4kv
