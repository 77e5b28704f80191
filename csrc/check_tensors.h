// What the checks of all ops are made of: tensors by their dtype, shape and device.
#pragma once
#include <c10/util/Exception.h>

#include "ops.h"

namespace int4kv {

// Which dimensions of a stored side count heads and tokens, and what it is called in messages.
struct Layout {
  const char *shape, *outer, *capacity;
  int64_t heads, tokens;
};
inline constexpr Layout kCacheLayout{"[batch, num_key_value_heads, capacity, ", "batch", "capacity", 1, 2};
inline constexpr Layout kPageLayout{"[pages, page_size, num_key_value_heads, ", "page", "page_size", 2, 1};

// What rotations and centres must fit.
struct Model {
  const at::Tensor& codes;
  c10::SymInt batch, kv_heads, head_dim;
};

void check_real(const std::string& name, const at::Tensor& x);
void check_4d(const std::string& name, const at::Tensor& x, const std::string& shape);
void check_device(const std::string& name, const at::Tensor& x, const at::Tensor& first);
void check_head_dim(const c10::SymInt& head_dim);
void check_integers(const std::string& name, const at::Tensor& x, at::ScalarType type, const at::Tensor& first);

// Rows of the batch (pages) and heads of the codes.
void check_rows(const std::string& name, const at::Tensor& rows, const at::Tensor& codes, const Layout& layout);
// Codes and scales; `side` is "k_", "v_" or nothing.
void check_stored(const std::string& side, const Stored& stored, const c10::SymInt& head_dim, int codebook, const Layout& layout);
void check_rotation(const std::string& name, const OptionalTensor& rotation, const Model& model);
void check_centre(const std::string& name, const OptionalTensor& centre, const Model& model);
// How far back queries see: the newest rows read exactly, the sliding window; and the cap of their scores.
void check_reach(const c10::SymInt& recent_window, const c10::SymInt& window, double softcap);
void check_both_or_none(const std::string& what, const OptionalTensor& k, const OptionalTensor& v, const Layout& layout);

} // namespace int4kv
