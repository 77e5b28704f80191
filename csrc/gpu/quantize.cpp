// quantize, quantize_kv, quantize_paged and dequantize on a GPU: one dispatch each, a simdgroup a row.
#include <ATen/ops/empty.h>

#include "stored.h"

namespace int4kv {
namespace {

constexpr size_t kTensorsOfBothSides = 12;

// One tensor on its way into the cache, and what is done to it there.
struct Incoming {
  const at::Tensor& x;
  const Stored& stored;
  at::Tensor centre, rotation;

  Incoming(const at::Tensor& x_, const Stored& stored_, const OptionalTensor& centre_, const OptionalTensor& rotation_)
      : x(x_), stored(stored_), centre(centre_rows(centre_, x_.size(0))), rotation(contiguous_or_none(rotation_)) {}
};

Int4kvQuantizeSide side_of(const Incoming& in, int64_t position, int codebook) {
  const int64_t head_dim = in.x.size(3);
  Int4kvQuantizeSide side{};
  side.x = rows_of(in.x);
  side.centre = rows_of(in.centre);
  side.has_centre = in.centre.defined();
  side.stored = stored_of(in.stored.codes, in.stored.scales, position, head_dim, codebook);
  side.rotation = rotation_of(in.rotation, head_dim);
  if (in.stored.recent) {
    side.recent = rows_of(*in.stored.recent);
    side.recent_rows = static_cast<unsigned>(in.stored.recent->size(2));
    side.recent_first_slot = static_cast<unsigned>(position % in.stored.recent->size(2));
  }
  return side;
}

void bind(Dispatch& dispatch, const Incoming& in) {
  dispatch.tensors.append({&in.x, &in.stored.codes, &in.stored.scales, or_null(in.stored.recent), &in.centre, &in.rotation});
}

Grid one_simdgroup_per_row(const Kernel& kernel, int64_t rows) {
  TORCH_CHECK(rows < (1ll << 31), "int4kv: ", rows, " rows in one call; accepted on a GPU are fewer than 2^31");
  return {(static_cast<uint32_t>(rows) + kernel.simdgroups() - 1) / kernel.simdgroups(), 1, 1};
}

// Where the tokens go in pages; undefined where they go to a ring.
struct Slots {
  at::Tensor slots, recent_slots;
};

int64_t count_slots(const at::Tensor& rows) {
  const int64_t count = rows.size(0) * rows.size(2);
  TORCH_CHECK(count < (1ll << 32), "int4kv: pages of ", count, " tokens; accepted on a GPU are fewer than 2^32");
  return count;
}

// K alone, or K and V of one shape.
void quantize_sides(const Incoming& k, const Incoming* v, int64_t position, int codebook, const Slots& slots = {}) {
  if (k.x.numel() == 0) return;
  const bool paged = slots.slots.defined();
  Int4kvQuantize p{};
  p.slots = paged ? static_cast<unsigned>(count_slots(k.stored.codes)) : 0;
  p.recent_slots = slots.recent_slots.defined() ? static_cast<unsigned>(count_slots(*k.stored.recent)) : 0;
  const int64_t rows = k.x.size(0) * k.x.size(1) * k.x.size(2);
  p.both = v != nullptr;
  p.rows = static_cast<unsigned>(rows);
  p.heads = static_cast<unsigned>(k.x.size(1));
  p.tokens = static_cast<unsigned>(k.x.size(2));
  const Kernel kernel{Entry::kQuantize, static_cast<uint32_t>(k.x.size(3)), 0, 0, 0, paged};
  Dispatch dispatch{kernel, {}, &p, sizeof p, one_simdgroup_per_row(kernel, v ? 2 * rows : rows)};
  p.sides[0] = side_of(k, position, codebook);
  bind(dispatch, k);
  if (v) {
    p.sides[1] = side_of(*v, position, codebook);
    bind(dispatch, *v);
  }
  dispatch.tensors.resize(kTensorsOfBothSides);
  dispatch.tensors.append({&slots.slots, &slots.recent_slots});
  encode({dispatch});
}

void quantize(
    const at::Tensor& x, at::Tensor& codes, at::Tensor& scales, int64_t position, const OptionalTensor& centre,
    const OptionalTensor& rotation, const OptionalTensor& recent, std::string_view codebook) {
  const Stored stored{codes, scales, recent};
  check_quantize("x", x, stored, position, centre, rotation, codebook);
  quantize_sides({x, stored, centre, rotation}, nullptr, position, codebook_of(codebook));
}

void quantize_kv(
    const at::Tensor& k, const at::Tensor& v, at::Tensor& k_codes, at::Tensor& k_scales, at::Tensor& v_codes, at::Tensor& v_scales,
    int64_t position, const OptionalTensor& k_centre, const OptionalTensor& v_centre, const OptionalTensor& k_rotation,
    const OptionalTensor& v_rotation, const OptionalTensor& k_recent, const OptionalTensor& v_recent, std::string_view codebook) {
  const Stored k_stored{k_codes, k_scales, k_recent}, v_stored{v_codes, v_scales, v_recent};
  check_quantize("k", k, k_stored, position, k_centre, k_rotation, codebook);
  check_quantize("v", v, v_stored, position, v_centre, v_rotation, codebook);
  const int book = codebook_of(codebook);
  const Incoming k_in{k, k_stored, k_centre, k_rotation}, v_in{v, v_stored, v_centre, v_rotation};
  if (k.sizes() == v.sizes()) return quantize_sides(k_in, &v_in, position, book);
  quantize_sides(k_in, nullptr, position, book);
  quantize_sides(v_in, nullptr, position, book);
}

OptionalTensor head_major(const OptionalTensor& x) {
  return x ? OptionalTensor(x->transpose(1, 2)) : std::nullopt;
}

// Views that the kernels know: tokens [1, heads, tokens, head_dim] into pages [pages, heads, page_size, ...].
void quantize_paged(
    const at::Tensor& k, const at::Tensor& v, at::Tensor& k_codes, at::Tensor& k_scales, at::Tensor& v_codes, at::Tensor& v_scales,
    const at::Tensor& slots, const OptionalTensor& k_centre, const OptionalTensor& v_centre, const OptionalTensor& k_rotation,
    const OptionalTensor& v_rotation, const OptionalTensor& k_recent, const OptionalTensor& v_recent, const OptionalTensor& recent_slots,
    std::string_view codebook) {
  check_quantize_paged<int64_t>(
      k, v, {k_codes, k_scales, k_recent}, {v_codes, v_scales, v_recent}, slots, k_centre, v_centre, k_rotation, v_rotation, recent_slots,
      codebook);
  if (k_codes.size(0) == 0) return;
  const at::Tensor k_rows = k.unsqueeze(0).transpose(1, 2), v_rows = v.unsqueeze(0).transpose(1, 2);
  const at::Tensor stored[] = {k_codes.transpose(1, 2), k_scales.transpose(1, 2), v_codes.transpose(1, 2), v_scales.transpose(1, 2)};
  const OptionalTensor k_rings = head_major(k_recent), v_rings = head_major(v_recent);
  const Stored k_stored{stored[0], stored[1], k_rings}, v_stored{stored[2], stored[3], v_rings};
  const Incoming k_in{k_rows, k_stored, k_centre, k_rotation}, v_in{v_rows, v_stored, v_centre, v_rotation};
  const Slots to{slots.contiguous(), contiguous_or_none(recent_slots)};
  const int book = codebook_of(codebook);
  if (k.sizes() == v.sizes()) return quantize_sides(k_in, &v_in, 0, book, to);
  quantize_sides(k_in, nullptr, 0, book, to);
  quantize_sides(v_in, nullptr, 0, book, to);
}

at::Tensor dequantize(
    const at::Tensor& codes, const at::Tensor& scales, int64_t start, int64_t end, int64_t head_dim, const OptionalTensor& centre,
    const OptionalTensor& rotation, at::ScalarType dtype, std::string_view codebook) {
  check_dequantize({codes, scales, std::nullopt}, start, end, head_dim, centre, rotation, dtype, codebook);
  const int64_t batch = codes.size(0), heads = codes.size(1), tokens = end - start;
  const at::Tensor out = at::empty({batch, heads, tokens, head_dim}, codes.options().dtype(dtype));
  if (out.numel() == 0) return out;
  const at::Tensor mean = centre_rows(centre, batch), by = contiguous_or_none(rotation);
  Int4kvDequantize p{};
  p.stored = stored_of(codes, scales, start, head_dim, codebook_of(codebook));
  p.out = rows_of(out);
  p.centre = rows_of(mean);
  p.has_centre = mean.defined();
  p.rotation = rotation_of(by, head_dim);
  p.heads = static_cast<unsigned>(heads);
  p.tokens = static_cast<unsigned>(tokens);
  const Kernel kernel{Entry::kDequantize, static_cast<uint32_t>(head_dim)};
  encode({{kernel, {&codes, &scales, &mean, &by, &out}, &p, sizeof p, one_simdgroup_per_row(kernel, batch * heads * tokens)}});
  return out;
}

} // namespace

void register_quantize(torch::Library& library) {
  library.impl("quantize", quantize);
  library.impl("quantize_kv", quantize_kv);
  library.impl("quantize_paged", quantize_paged);
  library.impl("dequantize", dequantize);
}

} // namespace int4kv
