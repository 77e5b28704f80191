// Every check names the argument, what it was and what is accepted, before anything is read or written.
// Sizes are SymInt so that the meta kernels share them under torch.compile with dynamic shapes.
#include "ops.h"

#include <c10/util/Exception.h>

namespace int4kv {
namespace {

bool is_real(const at::Tensor& x) {
  const auto type = x.scalar_type();
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16;
}

void check_real(const char* name, const at::Tensor& x) {
  TORCH_CHECK_TYPE(is_real(x), name, " has dtype ", x.scalar_type(), "; accepted are float32, float16 and bfloat16");
}

void check_4d(const char* name, const at::Tensor& x, const char* shape) {
  TORCH_CHECK_VALUE(x.dim() == 4, name, " has shape ", x.sym_sizes(), "; accepted is ", shape);
}

void check_device(const char* name, const at::Tensor& x, const at::Tensor& first) {
  TORCH_CHECK_VALUE(
      x.device() == first.device(), name, " is on ", x.device(), "; accepted is ", first.device(), ", where the other tensors are");
}

void check_head_dim(const c10::SymInt& head_dim) {
  TORCH_CHECK_VALUE(
      head_dim > 0 && head_dim <= INT4KV_MAX_HEAD_DIM && head_dim % INT4KV_UNIT == 0,
      "head_dim is ", head_dim, "; accepted are multiples of ", INT4KV_UNIT, " up to ", INT4KV_MAX_HEAD_DIM);
}

void check_rows(const std::string& name, const at::Tensor& rows, const at::Tensor& codes) {
  check_4d(name.c_str(), rows, "[batch, num_key_value_heads, capacity, ...]");
  check_device(name.c_str(), rows, codes);
  TORCH_CHECK_VALUE(
      rows.sym_size(0) == codes.sym_size(0) && rows.sym_size(1) == codes.sym_size(1),
      name, " has shape ", rows.sym_sizes(), "; accepted are the batch and head sizes of the codes, ", codes.sym_sizes());
}

void check_scales(const std::string& side, const Stored& stored, const c10::SymInt& head_dim, int codebook) {
  const std::string name = side + "scales";
  const auto each = scales_per_group(codebook);
  const auto groups = stored.scales.sym_size(3) / each;
  TORCH_CHECK_TYPE(stored.scales.scalar_type() == at::kHalf, name, " has dtype ", stored.scales.scalar_type(), "; accepted is float16");
  TORCH_CHECK_VALUE(
      stored.scales.sym_size(2) == stored.codes.sym_size(2), name, " has capacity ", stored.scales.sym_size(2),
      "; accepted is that of the codes, ", stored.codes.sym_size(2));
  TORCH_CHECK_VALUE(
      groups > 0 && stored.scales.sym_size(3) % each == 0 && head_dim % groups == 0 && (head_dim / groups) % INT4KV_UNIT == 0,
      name, " has ", groups, " groups for head_dim ", head_dim, "; accepted are groups of a multiple of ", INT4KV_UNIT, " channels, ",
      each, " numbers each");
}

void check_exact_rows(const std::string& name, const OptionalTensor& rows, const at::Tensor& codes, const c10::SymInt& head_dim) {
  if (!rows) return;
  check_rows(name, *rows, codes);
  check_real(name.c_str(), *rows);
  TORCH_CHECK_VALUE(
      rows->sym_size(3) == head_dim && rows->sym_size(2) > 0, name, " has shape ", rows->sym_sizes(),
      "; accepted is [batch, num_key_value_heads, rows > 0, ", head_dim, "]");
}

bool is_width(const c10::SymInt& bytes, const c10::SymInt& head_dim) {
  const auto bits = bytes * 8;
  return bits == head_dim * 3 || bits == head_dim * 4 || bits == head_dim * 5 || bits == head_dim * 8;
}

void check_stored(const std::string& side, const Stored& stored, const c10::SymInt& head_dim, int codebook) {
  const std::string codes = side + "codes";
  check_4d(codes.c_str(), stored.codes, "[batch, num_key_value_heads, capacity, bytes]");
  check_rows(side + "scales", stored.scales, stored.codes);
  TORCH_CHECK_VALUE(
      stored.codes.stride(3) == 1 || stored.codes.sym_size(3) <= 1, codes, " has stride ", stored.codes.stride(3),
      " in its last dimension; accepted is 1");
  if (is_packed(stored.codes)) {
    TORCH_CHECK_VALUE(
        is_width(stored.codes.sym_size(3), head_dim), codes, " has ", stored.codes.sym_size(3), " bytes for head_dim ", head_dim,
        "; accepted are ", head_dim * 3 / 8, " (3 bits), ", head_dim / 2, " (4 bits), ", head_dim * 5 / 8, " (5 bits) and ", head_dim,
        " (8 bits)");
    check_scales(side, stored, head_dim, codebook);
  } else {
    TORCH_CHECK_TYPE(
        is_real(stored.codes), codes, " has dtype ", stored.codes.scalar_type(),
        "; accepted are uint8 (packed), float32, float16 and bfloat16 (stored as they are)");
    TORCH_CHECK_VALUE(
        stored.codes.sym_size(3) == head_dim, codes, " has ", stored.codes.sym_size(3), " channels; accepted is head_dim, ", head_dim);
  }
  check_exact_rows(side + "recent", stored.recent, stored.codes, head_dim);
  check_exact_rows(side + "sink", stored.sink, stored.codes, head_dim);
}

void check_rotation(const char* name, const OptionalTensor& rotation, const at::Tensor& codes, const c10::SymInt& head_dim) {
  if (!rotation) return;
  check_device(name, *rotation, codes);
  TORCH_CHECK_TYPE(rotation->scalar_type() == at::kFloat, name, " has dtype ", rotation->scalar_type(), "; accepted is float32");
  const auto dims = rotation->dim();
  const auto last = dims > 0 ? rotation->sym_size(dims - 1) : c10::SymInt(0);
  const bool matrix = last == head_dim && (dims == 1 || (dims <= 3 && dims > 1 && rotation->sym_size(dims - 2) == head_dim));
  const bool heads = dims < 3 || rotation->sym_size(0) == codes.sym_size(1);
  bool blocks = false;
  for (int64_t block = 2; block <= INT4KV_MAX_HEAD_DIM; block *= 2) {
    blocks = blocks || (dims == 2 && last == block && rotation->sym_size(0) * block == head_dim);
  }
  TORCH_CHECK_VALUE(
      (matrix && heads) || blocks, name, " has shape ", rotation->sym_sizes(), "; accepted are [", head_dim, "] and [", head_dim,
      " / block, block], the signs of a randomised Hadamard rotation, and [", head_dim, ", ", head_dim, "] or [", codes.sym_size(1), ", ",
      head_dim, ", ", head_dim, "], a matrix");
}

void check_centre(const char* name, const OptionalTensor& centre, const at::Tensor& codes, const c10::SymInt& head_dim) {
  if (!centre) return;
  check_device(name, *centre, codes);
  TORCH_CHECK_TYPE(centre->scalar_type() == at::kFloat, name, " has dtype ", centre->scalar_type(), "; accepted is float32");
  TORCH_CHECK_VALUE(
      centre->dim() == 3 && (centre->sym_size(0) == codes.sym_size(0) || centre->sym_size(0) == 1) &&
          centre->sym_size(1) == codes.sym_size(1) && centre->sym_size(2) == head_dim,
      name, " has shape ", centre->sym_sizes(), "; accepted is [", codes.sym_size(0), " or 1, ", codes.sym_size(1), ", ", head_dim, "]");
}

void check_range(const Stored& stored, const c10::SymInt& start, const c10::SymInt& end) {
  TORCH_CHECK_VALUE(start >= 0 && start <= end, "start is ", start, " and end is ", end, "; accepted is 0 <= start <= end");
  TORCH_CHECK_VALUE(
      end - start <= stored.codes.sym_size(2), "start ", start, " to end ", end, " spans ", end - start,
      " tokens; accepted are up to the capacity, ", stored.codes.sym_size(2));
}

void check_mask(const OptionalTensor& mask, const at::Tensor& q, const c10::SymInt& keys) {
  if (!mask) return;
  check_device("mask", *mask, q);
  TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool, "mask has dtype ", mask->scalar_type(), "; accepted is bool (True = attend)");
  check_4d("mask", *mask, "[batch or 1, num_heads or 1, queries or 1, end - start]");
  const auto fits = [&](int64_t d) { return mask->sym_size(d) == 1 || mask->sym_size(d) == q.sym_size(d); };
  TORCH_CHECK_VALUE(
      fits(0) && fits(1) && fits(2), "mask has shape ", mask->sym_sizes(), "; accepted is [", q.sym_size(0), " or 1, ",
      q.sym_size(1), " or 1, ", q.sym_size(2), " or 1, ", keys, "]");
  TORCH_CHECK_VALUE(
      mask->sym_size(3) == keys, "mask has ", mask->sym_size(3), " keys; accepted is end - start, ", keys);
}

} // namespace

int codebook_of(std::string_view name) {
  if (name == "uniform") return INT4KV_UNIFORM;
  if (name == "lloyd") return INT4KV_LLOYD;
  if (name == "absmax") return INT4KV_ABSMAX;
  TORCH_CHECK_VALUE(
      name == "asymmetric", "codebook is '", name, "'; accepted are 'uniform', 'lloyd', 'absmax' and 'asymmetric'");
  return INT4KV_ASYMMETRIC;
}

void check_quantize(
    const char* name, const at::Tensor& x, const Stored& stored, const c10::SymInt& position,
    const OptionalTensor& centre, const OptionalTensor& rotation, std::string_view codebook) {
  const std::string side = name == std::string_view("x") ? "" : std::string(name) + "_";
  const int book = codebook_of(codebook);
  check_real(name, x);
  check_4d(name, x, "[batch, num_key_value_heads, tokens, head_dim]");
  const auto head_dim = x.sym_size(3);
  check_head_dim(head_dim);
  check_stored(side, stored, head_dim, book);
  check_device(name, x, stored.codes);
  TORCH_CHECK_VALUE(
      x.sym_size(0) == stored.codes.sym_size(0) && x.sym_size(1) == stored.codes.sym_size(1), name, " has shape ",
      x.sym_sizes(), "; accepted are the batch and head sizes of the codes, ", stored.codes.sym_sizes());
  TORCH_CHECK_VALUE(
      x.sym_size(2) <= stored.codes.sym_size(2), name, " has ", x.sym_size(2), " tokens; accepted are up to the capacity, ",
      stored.codes.sym_size(2));
  TORCH_CHECK_VALUE(position >= 0, "position is ", position, "; accepted is 0 or more");
  check_centre((side + "centre").c_str(), centre, stored.codes, head_dim);
  check_rotation((side + "rotation").c_str(), rotation, stored.codes, head_dim);
}

void check_attend(
    const at::Tensor& q, const Stored& k, const Stored& v, const c10::SymInt& start, const c10::SymInt& end,
    const OptionalTensor& k_rotation, const OptionalTensor& v_rotation, const OptionalTensor& v_centre,
    const c10::SymInt& recent_start, const c10::SymInt& recent_window, const OptionalTensor& mask, const c10::SymInt& window,
    double softcap, std::string_view codebook) {
  const int book = codebook_of(codebook);
  check_real("q", q);
  check_4d("q", q, "[batch, num_heads, queries, head_dim]");
  const auto head_dim = q.sym_size(3);
  check_head_dim(head_dim);
  check_stored("k_", k, head_dim, book);
  check_stored("v_", v, head_dim, book);
  check_rows("v_codes", v.codes, k.codes);
  check_device("q", q, k.codes);
  TORCH_CHECK_VALUE(
      k.codes.sym_size(2) == v.codes.sym_size(2), "v_codes has capacity ", v.codes.sym_size(2), "; accepted is that of k_codes, ",
      k.codes.sym_size(2));
  TORCH_CHECK_VALUE(
      q.sym_size(0) == k.codes.sym_size(0), "q has batch size ", q.sym_size(0), "; accepted is that of k_codes, ", k.codes.sym_size(0));
  TORCH_CHECK_VALUE(
      k.codes.sym_size(1) > 0 && q.sym_size(1) % k.codes.sym_size(1) == 0, "q has ", q.sym_size(1),
      " heads; accepted are multiples of num_key_value_heads, ", k.codes.sym_size(1));
  check_range(k, start, end);
  TORCH_CHECK_VALUE(
      k.recent.has_value() == v.recent.has_value(), "k_recent is ", k.recent ? "given" : "None", " and v_recent is ",
      v.recent ? "given" : "None", "; accepted are both or none");
  TORCH_CHECK_VALUE(
      !k.recent || k.recent->sym_size(2) == v.recent->sym_size(2), "v_recent has another number of rows than k_recent; accepted is the same");
  TORCH_CHECK_VALUE(
      k.sink.has_value() == v.sink.has_value(), "k_sink is ", k.sink ? "given" : "None", " and v_sink is ",
      v.sink ? "given" : "None", "; accepted are both or none");
  TORCH_CHECK_VALUE(
      !k.sink || k.sink->sym_size(2) == v.sink->sym_size(2), "v_sink has another number of rows than k_sink; accepted is the same");
  TORCH_CHECK_VALUE(recent_start >= 0, "recent_start is ", recent_start, "; accepted is 0 or more");
  TORCH_CHECK_VALUE(
      !k.recent || end - recent_start <= k.recent->sym_size(2), "recent_start is ", recent_start, " with end ", end,
      "; accepted are at most ", k.recent ? k.recent->sym_size(2) : c10::SymInt(0), " tokens, the rows of k_recent");
  TORCH_CHECK_VALUE(recent_window >= 0, "recent_window is ", recent_window, "; accepted is 0 or more");
  TORCH_CHECK_VALUE(window >= 0, "window is ", window, "; accepted is 0 (none) or more");
  TORCH_CHECK_VALUE(softcap >= 0, "softcap is ", softcap, "; accepted is 0 (none) or more");
  check_rotation("k_rotation", k_rotation, k.codes, head_dim);
  check_rotation("v_rotation", v_rotation, v.codes, head_dim);
  check_centre("v_centre", v_centre, v.codes, head_dim);
  check_mask(mask, q, end - start);
}

void check_dequantize(
    const Stored& stored, const c10::SymInt& start, const c10::SymInt& end, const c10::SymInt& head_dim,
    const OptionalTensor& centre, const OptionalTensor& rotation, at::ScalarType dtype, std::string_view codebook) {
  check_head_dim(head_dim);
  check_stored("", stored, head_dim, codebook_of(codebook));
  check_range(stored, start, end);
  check_centre("centre", centre, stored.codes, head_dim);
  check_rotation("rotation", rotation, stored.codes, head_dim);
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, "dtype is ", dtype,
      "; accepted are float32, float16 and bfloat16");
}

} // namespace int4kv
