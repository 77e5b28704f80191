// attend on a GPU: one dispatch, or two when the tokens are split.
#include <ATen/ops/empty.h>

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
  TORCH_CHECK(end - start <= 1 << 30, "int4kv: attend over ", end - start, " tokens; accepted on a GPU are up to 2^30");
  p.keys = static_cast<unsigned>(end - start);
  p.window = to_int(window);
  p.recent_window = to_int(recent_window);
  p.recent_from = recent && recent_window > 0 ? to_int(std::clamp(recent_start, start, end) - start) : to_int(end - start);
}

AttendShape shape_of(
    const at::Tensor& q, const at::Tensor& k_codes, const at::Tensor& k_scales, const at::Tensor& v_codes,
    const at::Tensor& v_scales, int codebook) {
  const bool one_scale = is_packed(k_codes) && is_packed(v_codes) && k_scales.size(3) == 1 && v_scales.size(3) == 1;
  return {q.size(0), k_codes.size(1), q.size(1) / k_codes.size(1), q.size(2), q.size(3), one_scale && codebook != INT4KV_ASYMMETRIC};
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
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2), head_dim = q.size(3), keys = end - start;
  const int book = codebook_of(codebook);
  const at::Tensor out = at::empty({batch, queries, heads, head_dim}, q.options()).transpose(1, 2);
  if (out.numel() == 0) return out;

  Int4kvAttend p{};
  describe_tokens(p, start, end, k_recent, recent_start, recent_window, window);
  const int64_t exact_from = start + p.recent_from;
  const at::Tensor keys_in = aligned_codes(k_codes), values_in = aligned_codes(v_codes);
  const at::Tensor seen = mask ? mask->expand({batch, heads, queries, keys}) : at::Tensor();
  const at::Tensor mean = centre_rows(v_centre, batch), k_by = contiguous_or_none(k_rotation), v_by = contiguous_or_none(v_rotation);
  p.q = rows_of(q);
  p.out = rows_of(out);
  p.mask = rows_of(seen);
  p.has_mask = seen.defined();
  p.v_centre = rows_of(mean);
  p.has_v_centre = mean.defined();
  p.k = stored_of(keys_in, k_scales, start, head_dim, book);
  p.v = stored_of(values_in, v_scales, start, head_dim, book);
  if (k_recent) p.k_recent = plain_rows_of(*k_recent, exact_from);
  if (v_recent) p.v_recent = plain_rows_of(*v_recent, exact_from);
  if (k_sink) p.k_sink = plain_rows_of(*k_sink, start);
  if (v_sink) p.v_sink = plain_rows_of(*v_sink, start);
  p.sinks = k_sink ? to_int(std::clamp(k_sink->size(2), start, end) - start) : 0;
  p.k_rotation = rotation_of(k_by, head_dim);
  p.v_rotation = rotation_of(v_by, head_dim);
  p.heads = static_cast<unsigned>(heads);
  p.kv_heads = static_cast<unsigned>(k_codes.size(1));
  p.queries = static_cast<unsigned>(queries);
  p.head_dim = static_cast<unsigned>(head_dim);
  p.causal = causal;
  p.softcap = static_cast<float>(softcap);
  p.scale = static_cast<float>(softcap > 0 ? scale : scale * kLog2e);

  const AttendShape shape = shape_of(q, k_codes, k_scales, v_codes, v_scales, book);
  const int64_t visible = window > 0 && window < keys ? std::min(keys, window + queries) : keys;
  const Kernel constants{Entry::kAttendSimd, 0, p.k.bits, p.v.bits, static_cast<uint32_t>(book)};
  const AttendPlan plan = plan_attend(shape, constants, visible, q);
  p.blocks = static_cast<unsigned>(plan.blocks);
  p.splits = static_cast<unsigned>(plan.splits);
  at::Tensor partial, statistics;
  if (plan.splits > 1) {
    partial = at::empty({batch * heads * queries * plan.splits, head_dim}, q.options().dtype(at::kFloat));
    statistics = at::empty({batch * heads * queries * plan.splits, 2}, q.options().dtype(at::kFloat));
  }

  const Grid grid{p.splits, static_cast<uint32_t>(shape.kv_heads * plan.blocks), static_cast<uint32_t>(batch)};
  const Grid merge_grid{plan.splits > 1 ? static_cast<uint32_t>(batch * heads * queries) : 0, 1, 1};
  encode({
      {plan.kernel,
       {&q, &keys_in, &k_scales, &values_in, &v_scales, or_null(k_sink), or_null(v_sink), or_null(k_recent), or_null(v_recent), &k_by,
        &v_by, &mean, &seen, &out, &partial, &statistics},
       &p, sizeof p, grid},
      {{Entry::kMerge}, {&partial, &statistics, &v_by, &mean, &out}, &p, sizeof p, merge_grid},
  });
  return out;
}

} // namespace

void register_attend(torch::Library& library) {
  library.impl("attend", attend);
}

} // namespace int4kv
