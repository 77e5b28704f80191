// What the checks of all ops are made of: tensors by their dtype, shape and device.
#include "check_tensors.h"

namespace int4kv {
namespace {

bool is_real(const at::Tensor& x) {
  const auto type = x.scalar_type();
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16;
}

} // namespace

void check_real(const std::string& name, const at::Tensor& x) {
  TORCH_CHECK_TYPE(is_real(x), name, " has dtype ", x.scalar_type(), "; accepted are float32, float16 and bfloat16");
}

void check_4d(const std::string& name, const at::Tensor& x, const std::string& shape) {
  TORCH_CHECK_VALUE(x.dim() == 4, name, " has shape ", x.sym_sizes(), "; accepted is ", shape);
}

void check_device(const std::string& name, const at::Tensor& x, const at::Tensor& first) {
  TORCH_CHECK_VALUE(
      x.device() == first.device(), name, " is on ", x.device(), "; accepted is ", first.device(), ", where the other tensors are");
}

void check_head_dim(const c10::SymInt& head_dim) {
  TORCH_CHECK_VALUE(
      head_dim > 0 && head_dim <= INT4KV_MAX_HEAD_DIM && head_dim % INT4KV_UNIT == 0,
      "head_dim is ", head_dim, "; accepted are multiples of ", INT4KV_UNIT, " up to ", INT4KV_MAX_HEAD_DIM);
}

void check_integers(const std::string& name, const at::Tensor& x, at::ScalarType type, const at::Tensor& first) {
  check_device(name, x, first);
  TORCH_CHECK_TYPE(x.scalar_type() == type, name, " has dtype ", x.scalar_type(), "; accepted is ", type == at::kInt ? "int32" : "int64");
}

void check_rows(const std::string& name, const at::Tensor& rows, const at::Tensor& codes, const Layout& layout) {
  check_4d(name, rows, std::string(layout.shape) + "...]");
  check_device(name, rows, codes);
  TORCH_CHECK_VALUE(
      rows.sym_size(0) == codes.sym_size(0) && rows.sym_size(layout.heads) == codes.sym_size(layout.heads),
      name, " has shape ", rows.sym_sizes(), "; accepted are the ", layout.outer, " and head sizes of the codes, ", codes.sym_sizes());
}

namespace {

void check_scales(const std::string& side, const Stored& stored, const c10::SymInt& head_dim, int codebook, const Layout& layout) {
  const std::string name = side + "scales";
  const auto each = scales_per_group(codebook);
  const auto groups = stored.scales.sym_size(3) / each;
  TORCH_CHECK_TYPE(stored.scales.scalar_type() == at::kHalf, name, " has dtype ", stored.scales.scalar_type(), "; accepted is float16");
  TORCH_CHECK_VALUE(
      stored.scales.sym_size(layout.tokens) == stored.codes.sym_size(layout.tokens), name, " has ", layout.capacity, " ",
      stored.scales.sym_size(layout.tokens), "; accepted is that of the codes, ", stored.codes.sym_size(layout.tokens));
  TORCH_CHECK_VALUE(
      groups > 0 && stored.scales.sym_size(3) % each == 0 && head_dim % groups == 0 && (head_dim / groups) % INT4KV_UNIT == 0,
      name, " has ", groups, " groups for head_dim ", head_dim, "; accepted are groups of a multiple of ", INT4KV_UNIT, " channels, ",
      each, " numbers each");
}

bool is_width(const c10::SymInt& bytes, const c10::SymInt& head_dim) {
  const auto bits = bytes * 8;
  return bits == head_dim * 3 || bits == head_dim * 4 || bits == head_dim * 5 || bits == head_dim * 8;
}

} // namespace

void check_stored(const std::string& side, const Stored& stored, const c10::SymInt& head_dim, int codebook, const Layout& layout) {
  const std::string codes = side + "codes";
  check_4d(codes, stored.codes, std::string(layout.shape) + "bytes]");
  check_rows(side + "scales", stored.scales, stored.codes, layout);
  TORCH_CHECK_VALUE(
      stored.codes.stride(3) == 1 || stored.codes.sym_size(3) <= 1, codes, " has stride ", stored.codes.stride(3),
      " in its last dimension; accepted is 1");
  if (is_packed(stored.codes)) {
    TORCH_CHECK_VALUE(
        is_width(stored.codes.sym_size(3), head_dim), codes, " has ", stored.codes.sym_size(3), " bytes for head_dim ", head_dim,
        "; accepted are ", head_dim * 3 / 8, " (3 bits), ", head_dim / 2, " (4 bits), ", head_dim * 5 / 8, " (5 bits) and ", head_dim,
        " (8 bits)");
    check_scales(side, stored, head_dim, codebook, layout);
  } else {
    TORCH_CHECK_TYPE(
        is_real(stored.codes), codes, " has dtype ", stored.codes.scalar_type(),
        "; accepted are uint8 (packed), float32, float16 and bfloat16 (stored as they are)");
    TORCH_CHECK_VALUE(
        stored.codes.sym_size(3) == head_dim, codes, " has ", stored.codes.sym_size(3), " channels; accepted is head_dim, ", head_dim);
  }
}

void check_rotation(const std::string& name, const OptionalTensor& rotation, const Model& model) {
  if (!rotation) return;
  const auto& head_dim = model.head_dim;
  check_device(name, *rotation, model.codes);
  TORCH_CHECK_TYPE(rotation->scalar_type() == at::kFloat, name, " has dtype ", rotation->scalar_type(), "; accepted is float32");
  const auto dims = rotation->dim();
  const auto last = dims > 0 ? rotation->sym_size(dims - 1) : c10::SymInt(0);
  const bool matrix = last == head_dim && (dims == 1 || (dims <= 3 && dims > 1 && rotation->sym_size(dims - 2) == head_dim));
  const bool heads = dims < 3 || rotation->sym_size(0) == model.kv_heads;
  bool blocks = false;
  for (int64_t block = 2; block <= INT4KV_MAX_HEAD_DIM; block *= 2) {
    blocks = blocks || (dims == 2 && last == block && rotation->sym_size(0) * block == head_dim);
  }
  TORCH_CHECK_VALUE(
      (matrix && heads) || blocks, name, " has shape ", rotation->sym_sizes(), "; accepted are [", head_dim, "] and [", head_dim,
      " / block, block], the signs of a randomised Hadamard rotation, and [", head_dim, ", ", head_dim, "] or [", model.kv_heads, ", ",
      head_dim, ", ", head_dim, "], a matrix");
}

void check_centre(const std::string& name, const OptionalTensor& centre, const Model& model) {
  if (!centre) return;
  check_device(name, *centre, model.codes);
  TORCH_CHECK_TYPE(centre->scalar_type() == at::kFloat, name, " has dtype ", centre->scalar_type(), "; accepted is float32");
  TORCH_CHECK_VALUE(
      centre->dim() == 3 && (centre->sym_size(0) == model.batch || centre->sym_size(0) == 1) &&
          centre->sym_size(1) == model.kv_heads && centre->sym_size(2) == model.head_dim,
      name, " has shape ", centre->sym_sizes(), "; accepted is [", model.batch, " or 1, ", model.kv_heads, ", ", model.head_dim, "]");
}

void check_reach(const c10::SymInt& recent_window, const c10::SymInt& window, double softcap) {
  TORCH_CHECK_VALUE(recent_window >= 0, "recent_window is ", recent_window, "; accepted is 0 or more");
  TORCH_CHECK_VALUE(window >= 0, "window is ", window, "; accepted is 0 (none) or more");
  TORCH_CHECK_VALUE(softcap >= 0, "softcap is ", softcap, "; accepted is 0 (none) or more");
}

void check_both_or_none(const std::string& what, const OptionalTensor& k, const OptionalTensor& v, const Layout& layout) {
  TORCH_CHECK_VALUE(
      k.has_value() == v.has_value(), "k_", what, " is ", k ? "given" : "None", " and v_", what, " is ", v ? "given" : "None",
      "; accepted are both or none");
  TORCH_CHECK_VALUE(
      !k || k->sym_size(layout.tokens) == v->sym_size(layout.tokens), "v_", what, " has another number of rows than k_", what,
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

} // namespace int4kv
