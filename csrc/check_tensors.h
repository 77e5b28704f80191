// What the checks of all ops are made of: tensors by their dtype, shape and device.
#pragma once
#include <c10/util/Exception.h>

#include <ostream>
#include <type_traits>

#include "ops.h"

namespace int4kv {

// What an argument is called in messages. In two parts, as a call that passes joins none: a decode step meets every line of code cold.
struct Name {
  const char *side, *what;
  Name(const char* whole) : side(""), what(whole) {}
  Name(const char* side_, const char* what_) : side(side_), what(what_) {}
};

inline std::ostream& operator<<(std::ostream& to, const Name& name) {
  return to << name.side << name.what;
}

// Sizes are Int: int64_t where kernels run, SymInt in the meta kernels, so that torch.compile keeps dynamic shapes.
template <typename Int>
Int size(const at::Tensor& x, int64_t dimension) {
  if constexpr (std::is_same_v<Int, int64_t>) {
    return x.sizes()[dimension];
  } else {
    return x.sym_size(dimension);
  }
}

// Which dimensions of a stored side count heads and tokens, and what it is called in messages.
struct Layout {
  const char *shape, *outer, *capacity;
  int64_t heads, tokens;
};
inline constexpr Layout kCacheLayout{"[batch, num_key_value_heads, capacity, ", "batch", "capacity", 1, 2};
inline constexpr Layout kPageLayout{"[pages, page_size, num_key_value_heads, ", "page", "page_size", 2, 1};

// What rotations and centres must fit.
template <typename Int>
struct Model {
  const at::Tensor& codes;
  Int batch, kv_heads, head_dim;
};

void check_real(Name name, const at::Tensor& x);
void check_4d(Name name, const at::Tensor& x, Name shape);
void check_device(Name name, const at::Tensor& x, const at::Tensor& first);
template <typename Int>
void check_head_dim(const Int& head_dim);
void check_integers(Name name, const at::Tensor& x, at::ScalarType type, const at::Tensor& first);

// Rows of the batch (pages) and heads of the codes.
template <typename Int>
void check_rows(Name name, const at::Tensor& rows, const at::Tensor& codes, const Layout& layout);
// Codes and scales; `side` is "k_", "v_" or nothing.
template <typename Int>
void check_stored(const char* side, const Stored& stored, const Int& head_dim, int codebook, const Layout& layout);
template <typename Int>
void check_rotation(Name name, const OptionalTensor& rotation, const Model<Int>& model);
template <typename Int>
void check_centre(Name name, const OptionalTensor& centre, const Model<Int>& model);
// How far back queries see: the newest rows read exactly, the sliding window; and the cap of their scores.
template <typename Int>
void check_reach(const Int& recent_window, const Int& window, double softcap);
template <typename Int>
void check_both_or_none(const char* what, const OptionalTensor& k, const OptionalTensor& v, const Layout& layout);

} // namespace int4kv
