// What the checks of all ops are made of: tensors by their dtype, shape and device.
#include "check_tensors.h"

namespace int4kv {
namespace {

bool is_real(const at::Tensor& x) {
  const auto type = x.scalar_type();
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16;
}

} // namespace

void check_real(Name name, const at::Tensor& x) {
  TORCH_CHECK_TYPE(is_real(x), name, " has dtype ", x.scalar_type(), "; accepted are float32, float16 and bfloat16");
}

void check_4d(Name name, const at::Tensor& x, Name shape) {
  TORCH_CHECK_VALUE(x.dim() == 4, name, " has shape ", x.sym_sizes(), "; accepted is ", shape);
}

void check_device(Name name, const at::Tensor& x, const at::Tensor& first) {
  TORCH_CHECK_VALUE(
      x.device() == first.device(), name, " is on ", x.device(), "; accepted is ", first.device(), ", where the other tensors are");
}

template <typename Int>
void check_head_dim(const Int& head_dim) {
  TORCH_CHECK_VALUE(
      head_dim > 0 && head_dim <= INT4KV_MAX_HEAD_DIM && head_dim % INT4KV_UNIT == 0,
      "head_dim is ", head_dim, "; accepted are multiples of ", INT4KV_UNIT, " up to ", INT4KV_MAX_HEAD_DIM);
}

void check_integers(Name name, const at::Tensor& x, at::ScalarType type, const at::Tensor& first) {
  check_device(name, x, first);
  TORCH_CHECK_TYPE(x.scalar_type() == type, name, " has dtype ", x.scalar_type(), "; accepted is ", type == at::kInt ? "int32" : "int64");
}

template <typename Int>
void check_rows(Name name, const at::Tensor& rows, const at::Tensor& codes, const Layout& layout) {
  check_4d(name, rows, {layout.shape, "...]"});
  check_device(name, rows, codes);
  TORCH_CHECK_VALUE(
      size<Int>(rows, 0) == size<Int>(codes, 0) && size<Int>(rows, layout.heads) == size<Int>(codes, layout.heads),
      name, " has shape ", rows.sym_sizes(), "; accepted are the ", layout.outer, " and head sizes of the codes, ", codes.sym_sizes());
}

namespace {

template <typename Int>
void check_scales(const char* side, const Stored& stored, const Int& head_dim, int codebook, const Layout& layout) {
  const Name name{side, "scales"};
  const auto each = scales_per_group(codebook);
  const auto groups = size<Int>(stored.scales, 3) / each;
  TORCH_CHECK_TYPE(stored.scales.scalar_type() == at::kHalf, name, " has dtype ", stored.scales.scalar_type(), "; accepted is float16");
  TORCH_CHECK_VALUE(
      size<Int>(stored.scales, layout.tokens) == size<Int>(stored.codes, layout.tokens), name, " has ", layout.capacity, " ",
      size<Int>(stored.scales, layout.tokens), "; accepted is that of the codes, ", size<Int>(stored.codes, layout.tokens));
  TORCH_CHECK_VALUE(
      groups > 0 && size<Int>(stored.scales, 3) % each == 0 && head_dim % groups == 0 && (head_dim / groups) % INT4KV_UNIT == 0,
      name, " has ", groups, " groups for head_dim ", head_dim, "; accepted are groups of a multiple of ", INT4KV_UNIT, " channels, ",
      each, " numbers each");
}

template <typename Int>
bool is_width(const Int& bytes, const Int& head_dim) {
  const auto bits = bytes * 8;
  return bits == head_dim * 3 || bits == head_dim * 4 || bits == head_dim * 5 || bits == head_dim * 8;
}

} // namespace

template <typename Int>
void check_stored(const char* side, const Stored& stored, const Int& head_dim, int codebook, const Layout& layout) {
  const Name codes{side, "codes"};
  check_4d(codes, stored.codes, {layout.shape, "bytes]"});
  check_rows<Int>({side, "scales"}, stored.scales, stored.codes, layout);
  TORCH_CHECK_VALUE(
      stored.codes.stride(3) == 1 || size<Int>(stored.codes, 3) <= 1, codes, " has stride ", stored.codes.stride(3),
      " in its last dimension; accepted is 1");
  if (is_packed(stored.codes)) {
    TORCH_CHECK_VALUE(
        is_width(size<Int>(stored.codes, 3), head_dim), codes, " has ", size<Int>(stored.codes, 3), " bytes for head_dim ", head_dim,
        "; accepted are ", head_dim * 3 / 8, " (3 bits), ", head_dim / 2, " (4 bits), ", head_dim * 5 / 8, " (5 bits) and ", head_dim,
        " (8 bits)");
    check_scales(side, stored, head_dim, codebook, layout);
  } else {
    TORCH_CHECK_TYPE(
        is_real(stored.codes), codes, " has dtype ", stored.codes.scalar_type(),
        "; accepted are uint8 (packed), float32, float16 and bfloat16 (stored as they are)");
    TORCH_CHECK_VALUE(
        size<Int>(stored.codes, 3) == head_dim, codes, " has ", size<Int>(stored.codes, 3), " channels; accepted is head_dim, ", head_dim);
  }
}

template <typename Int>
void check_rotation(Name name, const OptionalTensor& rotation, const Model<Int>& model) {
  if (!rotation) return;
  const auto& head_dim = model.head_dim;
  check_device(name, *rotation, model.codes);
  TORCH_CHECK_TYPE(rotation->scalar_type() == at::kFloat, name, " has dtype ", rotation->scalar_type(), "; accepted is float32");
  const auto dims = rotation->dim();
  const auto last = dims > 0 ? size<Int>(*rotation, dims - 1) : Int(0);
  const bool matrix = last == head_dim && (dims == 1 || (dims <= 3 && dims > 1 && size<Int>(*rotation, dims - 2) == head_dim));
  const bool heads = dims < 3 || size<Int>(*rotation, 0) == model.kv_heads;
  bool blocks = false;
  for (int64_t block = 2; block <= INT4KV_MAX_HEAD_DIM; block *= 2) {
    blocks = blocks || (dims == 2 && last == block && size<Int>(*rotation, 0) * block == head_dim);
  }
  TORCH_CHECK_VALUE(
      (matrix && heads) || blocks, name, " has shape ", rotation->sym_sizes(), "; accepted are [", head_dim, "] and [", head_dim,
      " / block, block], the signs of a randomised Hadamard rotation, and [", head_dim, ", ", head_dim, "] or [", model.kv_heads, ", ",
      head_dim, ", ", head_dim, "], a matrix");
}

template <typename Int>
void check_centre(Name name, const OptionalTensor& centre, const Model<Int>& model) {
  if (!centre) return;
  check_device(name, *centre, model.codes);
  TORCH_CHECK_TYPE(centre->scalar_type() == at::kFloat, name, " has dtype ", centre->scalar_type(), "; accepted is float32");
  TORCH_CHECK_VALUE(
      centre->dim() == 3 && (size<Int>(*centre, 0) == model.batch || size<Int>(*centre, 0) == 1) &&
          size<Int>(*centre, 1) == model.kv_heads && size<Int>(*centre, 2) == model.head_dim,
      name, " has shape ", centre->sym_sizes(), "; accepted is [", model.batch, " or 1, ", model.kv_heads, ", ", model.head_dim, "]");
}

template <typename Int>
void check_reach(const Int& recent_window, const Int& window, double softcap) {
  TORCH_CHECK_VALUE(recent_window >= 0, "recent_window is ", recent_window, "; accepted is 0 or more");
  TORCH_CHECK_VALUE(window >= 0, "window is ", window, "; accepted is 0 (none) or more");
  TORCH_CHECK_VALUE(softcap >= 0, "softcap is ", softcap, "; accepted is 0 (none) or more");
}

template <typename Int>
void check_both_or_none(const char* what, const OptionalTensor& k, const OptionalTensor& v, const Layout& layout) {
  TORCH_CHECK_VALUE(
      k.has_value() == v.has_value(), "k_", what, " is ", k ? "given" : "None", " and v_", what, " is ", v ? "given" : "None",
      "; accepted are both or none");
  TORCH_CHECK_VALUE(
      !k || size<Int>(*k, layout.tokens) == size<Int>(*v, layout.tokens), "v_", what, " has another number of rows than k_", what,
      "; accepted is the same");
}

int codebook_of(std::string_view name) {
  if (name == "uniform") return INT4KV_UNIFORM;
  if (name == "lloyd") return INT4KV_LLOYD;
  if (name == "absmax") return INT4KV_ABSMAX;
  TORCH_CHECK_VALUE(
      name == "asymmetric", "codebook is '", name, "'; accepted are 'uniform', 'lloyd', 'absmax' and 'asymmetric'");
  return INT4KV_ASYMMETRIC;
}

#define INT4KV_CHECKS_OF(Int)                                                                                      \
  template void check_head_dim(const Int&);                                                                        \
  template void check_rows<Int>(Name, const at::Tensor&, const at::Tensor&, const Layout&);                        \
  template void check_stored(const char*, const Stored&, const Int&, int, const Layout&);                          \
  template void check_rotation(Name, const OptionalTensor&, const Model<Int>&);                                    \
  template void check_centre(Name, const OptionalTensor&, const Model<Int>&);                                      \
  template void check_reach(const Int&, const Int&, double);                                                       \
  template void check_both_or_none<Int>(const char*, const OptionalTensor&, const OptionalTensor&, const Layout&);
INT4KV_CHECKS_OF(int64_t)
INT4KV_CHECKS_OF(c10::SymInt)

} // namespace int4kv
