// Shapes and checks that every backend, and the meta kernels, share.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>
#include <optional>
#include <string>

#include "format.h"

namespace int4kv {

using OptionalTensor = std::optional<at::Tensor>;

inline const OptionalTensor kNoTensor{};

// One stored side (K or V): packed codes with scales, or plain floating rows with none; exact rows of the newest and the first tokens.
struct Stored {
  const at::Tensor& codes;
  const at::Tensor& scales;
  const OptionalTensor& recent;
  const OptionalTensor& sink = kNoTensor;
};

// The number that format.h gives a codebook's name.
int codebook_of(std::string_view name);

template <typename Int>
void check_quantize(
    const char* name, const at::Tensor& x, const Stored& stored, const Int& position,
    const OptionalTensor& centre, const OptionalTensor& rotation, std::string_view codebook);

template <typename Int>
void check_attend(
    const at::Tensor& q, const Stored& k, const Stored& v, const Int& start, const Int& end,
    const OptionalTensor& k_rotation, const OptionalTensor& v_rotation, const OptionalTensor& v_centre,
    const Int& recent_start, const Int& recent_window, const OptionalTensor& mask, const Int& window,
    double softcap, std::string_view codebook);

// The sequences of attend_paged: where the pages of each are, its keys, its rows of q, and its ring of exact rows.
struct PagedBatch {
  const at::Tensor& block_table;
  const at::Tensor& lengths;
  const at::Tensor& query_starts;
  const OptionalTensor& rings;
  const OptionalTensor& recent_starts;
};

// Codes are [pages, page_size, num_key_value_heads, bytes] here, recent rows [rings, rows, num_key_value_heads, head_dim].
template <typename Int>
void check_quantize_paged(
    const at::Tensor& k, const at::Tensor& v, const Stored& k_stored, const Stored& v_stored, const at::Tensor& slots,
    const OptionalTensor& k_centre, const OptionalTensor& v_centre, const OptionalTensor& k_rotation, const OptionalTensor& v_rotation,
    const OptionalTensor& recent_slots, std::string_view codebook);

template <typename Int>
void check_attend_paged(
    const at::Tensor& q, const Stored& k, const Stored& v, const PagedBatch& batch, int64_t max_queries, const OptionalTensor& k_rotation,
    const OptionalTensor& v_rotation, const OptionalTensor& v_centre, const Int& recent_window, const Int& window,
    double softcap, std::string_view codebook);

template <typename Int>
void check_dequantize(
    const Stored& stored, const Int& start, const Int& end, const Int& head_dim,
    const OptionalTensor& centre, const OptionalTensor& rotation, at::ScalarType dtype, std::string_view codebook);

inline bool is_packed(const at::Tensor& codes) {
  return codes.scalar_type() == at::kByte;
}

inline int64_t bits_of(const at::Tensor& codes, int64_t head_dim) {
  return codes.size(3) * 8 / head_dim;
}

// fp16 numbers per group: a scale, for `asymmetric` a minimum as well.
inline int64_t scales_per_group(int codebook) {
  return codebook == INT4KV_ASYMMETRIC ? 2 : 1;
}

} // namespace int4kv
