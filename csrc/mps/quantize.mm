// quantize, quantize_kv and dequantize on mps: one dispatch each, a simdgroup a row.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "stored.h"

namespace int4kv {
namespace {

Int4kvQuantizeSide side_of(
    const at::Tensor& x, const Stored& stored, int64_t position, const at::Tensor& centre, const OptionalTensor& rotation, int codebook) {
  Int4kvQuantizeSide side{};
  side.x = rows_of(x);
  side.centre = rows_of(centre);
  side.has_centre = centre.defined();
  side.stored = stored_of(stored.codes, stored.scales, position, x.size(3), codebook);
  side.rotation = rotation_of(rotation, x.size(3));
  if (stored.recent) {
    side.recent = rows_of(*stored.recent);
    side.recent_rows = static_cast<unsigned>(stored.recent->size(2));
    side.recent_first_slot = static_cast<unsigned>(position % stored.recent->size(2));
  }
  return side;
}

MTLSize one_simdgroup_per_row(int64_t rows) {
  TORCH_CHECK(rows < (1ll << 32), "int4kv: ", rows, " rows in one call; accepted on mps are fewer than 2^32");
  return MTLSizeMake(static_cast<NSUInteger>(rows), 1, 1);
}

// One tensor on its way into the cache, and what is done to it there.
struct Incoming {
  const at::Tensor& x;
  Stored stored;
  at::Tensor centre;
  const OptionalTensor& rotation;
};

// What one side binds: x, codes, scales, recent, centre, rotation.
void append(std::vector<at::Tensor>& tensors, const Incoming& in) {
  const at::Tensor by = in.rotation ? in.rotation->contiguous() : at::Tensor();
  tensors.insert(tensors.end(), {in.x, in.stored.codes, in.stored.scales, or_none(in.stored.recent), in.centre, by});
}

// K alone, or K and V of one shape.
void quantize_sides(const Incoming& k, const Incoming* v, int64_t position, int codebook) {
  if (k.x.numel() == 0) return;
  Int4kvQuantize p{};
  const int64_t rows = k.x.size(0) * k.x.size(1) * k.x.size(2);
  p.rows = static_cast<unsigned>(rows);
  p.heads = static_cast<unsigned>(k.x.size(1));
  p.tokens = static_cast<unsigned>(k.x.size(2));
  std::vector<at::Tensor> tensors;
  p.k = side_of(k.x, k.stored, position, k.centre, k.rotation, codebook);
  append(tensors, k);
  if (v) {
    p.v = side_of(v->x, v->stored, position, v->centre, v->rotation, codebook);
    append(tensors, *v);
  }
  tensors.resize(12);
  encode({{"quantize_" + std::to_string(k.x.size(3)), tensors, &p, sizeof p, one_simdgroup_per_row(v ? 2 * rows : rows), 1}});
}

void quantize(
    const at::Tensor& x, at::Tensor& codes, at::Tensor& scales, int64_t position, const OptionalTensor& centre,
    const OptionalTensor& rotation, const OptionalTensor& recent, std::string_view codebook) {
  const Stored stored{codes, scales, recent};
  check_quantize("x", x, stored, position, centre, rotation, codebook);
  quantize_sides({x, stored, centre_rows(centre, x.size(0)), rotation}, nullptr, position, codebook_of(codebook));
}

void quantize_kv(
    const at::Tensor& k, const at::Tensor& v, at::Tensor& k_codes, at::Tensor& k_scales, at::Tensor& v_codes, at::Tensor& v_scales,
    int64_t position, const OptionalTensor& k_centre, const OptionalTensor& v_centre, const OptionalTensor& k_rotation,
    const OptionalTensor& v_rotation, const OptionalTensor& k_recent, const OptionalTensor& v_recent, std::string_view codebook) {
  const Stored k_stored{k_codes, k_scales, k_recent}, v_stored{v_codes, v_scales, v_recent};
  check_quantize("k", k, k_stored, position, k_centre, k_rotation, codebook);
  check_quantize("v", v, v_stored, position, v_centre, v_rotation, codebook);
  const int book = codebook_of(codebook);
  const Incoming k_in{k, k_stored, centre_rows(k_centre, k.size(0)), k_rotation};
  const Incoming v_in{v, v_stored, centre_rows(v_centre, v.size(0)), v_rotation};
  if (k.sizes() == v.sizes()) return quantize_sides(k_in, &v_in, position, book);
  quantize_sides(k_in, nullptr, position, book);
  quantize_sides(v_in, nullptr, position, book);
}

at::Tensor dequantize(
    const at::Tensor& codes, const at::Tensor& scales, int64_t start, int64_t end, int64_t head_dim, const OptionalTensor& centre,
    const OptionalTensor& rotation, at::ScalarType dtype, std::string_view codebook) {
  check_dequantize({codes, scales, std::nullopt}, start, end, head_dim, centre, rotation, dtype, codebook);
  const int64_t batch = codes.size(0), heads = codes.size(1), tokens = end - start;
  const at::Tensor out = at::empty({batch, heads, tokens, head_dim}, codes.options().dtype(dtype));
  if (out.numel() == 0) return out;
  const at::Tensor mean = centre_rows(centre, batch), by = rotation ? rotation->contiguous() : at::Tensor();
  Int4kvDequantize p{};
  p.stored = stored_of(codes, scales, start, head_dim, codebook_of(codebook));
  p.out = rows_of(out);
  p.centre = rows_of(mean);
  p.has_centre = mean.defined();
  p.rotation = rotation_of(rotation, head_dim);
  p.heads = static_cast<unsigned>(heads);
  p.tokens = static_cast<unsigned>(tokens);
  encode({{"dequantize_" + std::to_string(head_dim), {codes, scales, mean, by, out}, &p, sizeof p,
           one_simdgroup_per_row(batch * heads * tokens), 1}});
  return out;
}

} // namespace

TORCH_LIBRARY_IMPL(int4kv, MPS, m) {
  m.impl("quantize", quantize);
  m.impl("quantize_kv", quantize_kv);
  m.impl("dequantize", dequantize);
}

} // namespace int4kv
