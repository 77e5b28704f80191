// attend and attend_paged on a GPU: one dispatch, or two when the tokens are split.
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

// The tensors of a call as the kernels see them: [batch, head, token, channel] each. What is not given is undefined.
struct Tensors {
  at::Tensor q, out, k_codes, k_scales, v_codes, v_scales, k_sink, v_sink, k_recent, v_recent, k_rotation, v_rotation, v_centre, mask;
  at::Tensor block_table = {}, lengths = {}, query_starts = {}, rings = {}, recent_starts = {};
};

void describe_tensors(Int4kvAttend& p, const Tensors& t, int64_t start, double scale, double softcap, int codebook) {
  const int64_t head_dim = t.q.size(3), exact_from = start + p.recent_from;
  p.q = rows_of(t.q);
  p.out = rows_of(t.out);
  p.mask = rows_of(t.mask);
  p.has_mask = t.mask.defined();
  p.v_centre = rows_of(t.v_centre);
  p.has_v_centre = t.v_centre.defined();
  p.k = stored_of(t.k_codes, t.k_scales, start, head_dim, codebook);
  p.v = stored_of(t.v_codes, t.v_scales, start, head_dim, codebook);
  if (t.k_recent.defined()) p.k_recent = plain_rows_of(t.k_recent, exact_from);
  if (t.v_recent.defined()) p.v_recent = plain_rows_of(t.v_recent, exact_from);
  if (t.k_sink.defined()) p.k_sink = plain_rows_of(t.k_sink, start);
  if (t.v_sink.defined()) p.v_sink = plain_rows_of(t.v_sink, start);
  p.k_rotation = rotation_of(t.k_rotation, head_dim);
  p.v_rotation = rotation_of(t.v_rotation, head_dim);
  p.heads = static_cast<unsigned>(t.q.size(1));
  p.kv_heads = static_cast<unsigned>(t.k_codes.size(1));
  p.group = p.heads / p.kv_heads;
  p.queries = static_cast<unsigned>(t.q.size(2));
  p.head_dim = static_cast<unsigned>(head_dim);
  p.softcap = static_cast<float>(softcap);
  p.scale = static_cast<float>(softcap > 0 ? scale : scale * kLog2e);
}

bool is_plain_decode(const Int4kvAttend& p, int64_t queries) {
  return queries == 1 && !p.has_mask && p.softcap == 0.0f && p.sinks == 0 && p.k_rotation.kind != INT4KV_DENSE &&
      p.v_rotation.kind != INT4KV_DENSE;
}

// `batch` threadgroups wide, each with up to `queries` queries, which see up to `keys` keys.
void run(Int4kvAttend& p, const Tensors& t, int64_t batch, int64_t queries, int64_t keys, int codebook, bool paged) {
  const bool one_scale = is_packed(t.k_codes) && is_packed(t.v_codes) && t.k_scales.size(3) == 1 && t.v_scales.size(3) == 1;
  const AttendShape shape{
      batch, t.k_codes.size(1), t.q.size(1) / t.k_codes.size(1), queries, t.q.size(3), one_scale && codebook != INT4KV_ASYMMETRIC};
  const int64_t visible = p.window > 0 && p.window < keys ? std::min<int64_t>(keys, p.window + queries) : keys;
  const Kernel constants{
      Entry::kAttendSimd, 0, p.k.bits, p.v.bits, static_cast<uint32_t>(codebook), paged, is_plain_decode(p, queries)};
  const AttendPlan plan = plan_attend(shape, constants, visible, t.q);
  p.splitting = splitting_of(plan.kernel);
  p.blocks = static_cast<unsigned>(plan.blocks);
  p.splits = static_cast<unsigned>(plan.splits);
  const int64_t rows = t.q.size(0) * t.q.size(1) * t.q.size(2);
  at::Tensor partial, statistics;
  if (plan.splits > 1) {
    partial = at::empty({rows * plan.splits, shape.head_dim}, t.q.options().dtype(at::kFloat));
    statistics = at::empty({rows * plan.splits, 2}, t.q.options().dtype(at::kFloat));
  }
  const Grid grid{p.splits, static_cast<uint32_t>(shape.kv_heads * plan.blocks), static_cast<uint32_t>(batch)};
  const Grid merge_grid{plan.splits > 1 ? static_cast<uint32_t>(rows) : 0, 1, 1};
  encode({
      {plan.kernel,
       {&t.q, &t.k_codes, &t.k_scales, &t.v_codes, &t.v_scales, &t.k_sink, &t.v_sink, &t.k_recent, &t.v_recent, &t.k_rotation,
        &t.v_rotation, &t.v_centre, &t.mask, &t.out, &partial, &statistics, &t.block_table, &t.lengths, &t.query_starts, &t.rings,
        &t.recent_starts},
       &p, sizeof p, grid},
      {{Entry::kMerge, p.head_dim, 0, 0, 0, 0, constants.decode, is_large_merge(plan.splits)}, {&partial, &statistics, &t.v_rotation, &t.v_centre, &t.out}, &p, sizeof p, merge_grid},
  });
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

  const Tensors tensors{
      q, out, aligned_codes(k_codes), k_scales, aligned_codes(v_codes), v_scales, or_undefined(k_sink), or_undefined(v_sink),
      or_undefined(k_recent), or_undefined(v_recent), contiguous_or_none(k_rotation), contiguous_or_none(v_rotation),
      centre_rows(v_centre, batch), mask ? mask->expand({batch, heads, queries, keys}) : at::Tensor()};
  Int4kvAttend p{};
  describe_tokens(p, start, end, k_recent, recent_start, recent_window, window);
  describe_tensors(p, tensors, start, scale, softcap, book);
  p.sinks = k_sink ? to_int(std::clamp(k_sink->size(2), start, end) - start) : 0;
  p.causal = causal;
  run(p, tensors, batch, queries, keys, book, false);
  return out;
}

// [tokens, heads, head_dim] -> [1, heads, tokens, head_dim], and pages or rings [n, rows, heads, ...] -> [n, heads, rows, ...].
at::Tensor batch_of_one(const at::Tensor& x) {
  return x.unsqueeze(0).transpose(1, 2);
}

at::Tensor head_major(const at::Tensor& x) {
  return x.transpose(1, 2);
}

at::Tensor head_major_or_undefined(const OptionalTensor& x, bool used) {
  return x && used ? head_major(*x) : at::Tensor();
}

// The kernels read lengths and tables themselves: the host does not know them, and does not wait for them.
at::Tensor attend_paged(
    const at::Tensor& q, const at::Tensor& k_codes, const at::Tensor& k_scales, const at::Tensor& v_codes, const at::Tensor& v_scales,
    const at::Tensor& block_table, const at::Tensor& lengths, const at::Tensor& query_starts, int64_t max_queries, double scale,
    const OptionalTensor& k_rotation, const OptionalTensor& v_rotation, const OptionalTensor& v_centre, const OptionalTensor& k_recent,
    const OptionalTensor& v_recent, const OptionalTensor& rings, const OptionalTensor& recent_starts, int64_t recent_window,
    int64_t window, double softcap, std::string_view codebook) {
  check_attend_paged(
      q, {k_codes, k_scales, k_recent}, {v_codes, v_scales, v_recent}, {block_table, lengths, query_starts, rings, recent_starts},
      max_queries, k_rotation, v_rotation, v_centre, recent_window, window, softcap, codebook);
  const at::Tensor out = at::empty(q.sizes(), q.options());
  const int64_t sequences = lengths.size(0), pages = k_codes.size(0), page_size = k_codes.size(1);
  const int64_t keys = block_table.size(1) * page_size;
  if (out.numel() == 0 || sequences == 0 || max_queries == 0) return out;
  if (pages == 0 || keys == 0) return out.zero_();

  const bool exact = k_recent && recent_window > 0 && k_recent->size(0) > 0;
  const Tensors tensors{
      batch_of_one(q), batch_of_one(out), aligned_codes(head_major(k_codes)), head_major(k_scales), aligned_codes(head_major(v_codes)),
      head_major(v_scales), {}, {}, head_major_or_undefined(k_recent, exact), head_major_or_undefined(v_recent, exact),
      contiguous_or_none(k_rotation), contiguous_or_none(v_rotation), centre_rows(v_centre, 1), {}, block_table.contiguous(),
      lengths.contiguous(), query_starts.contiguous(), contiguous_or_none(rings), contiguous_or_none(recent_starts)};
  Int4kvAttend p{};
  describe_tokens(p, 0, keys, k_recent, 0, recent_window, window);
  describe_tensors(p, tensors, 0, scale, softcap, codebook_of(codebook));
  p.causal = true;
  p.pages = static_cast<unsigned>(pages);
  p.rings = exact ? static_cast<unsigned>(k_recent->size(0)) : 0;
  p.table_width = static_cast<unsigned>(block_table.size(1));
  run(p, tensors, sequences, std::min(max_queries, q.size(0)), keys, codebook_of(codebook), true);
  return out;
}

} // namespace

void register_attend(torch::Library& library) {
  library.impl("attend", attend);
  library.impl("attend_paged", attend_paged);
}

} // namespace int4kv
