// Shapes and checks that every backend, and the meta kernels, share.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>
#include <optional>
#include <string>

#include "format.h"

namespace int4kv {

using OptionalTensor = std::optional<at::Tensor>;

// One stored side (K or V): packed codes with scales, or plain floating rows with none.
struct Stored {
  const at::Tensor& codes;
  const at::Tensor& scales;
  const OptionalTensor& recent;
};

void check_quantize(
    const char* name, const at::Tensor& x, const Stored& stored, const c10::SymInt& position,
    const OptionalTensor& centre, const OptionalTensor& rotation, std::string_view codebook);

void check_attend(
    const at::Tensor& q, const Stored& k, const Stored& v, const c10::SymInt& start, const c10::SymInt& end,
    const OptionalTensor& k_rotation, const OptionalTensor& v_rotation, const c10::SymInt& recent_start,
    const c10::SymInt& recent_window, const OptionalTensor& mask, const c10::SymInt& window, double softcap,
    std::string_view codebook);

void check_dequantize(
    const Stored& stored, const c10::SymInt& start, const c10::SymInt& end, const c10::SymInt& head_dim,
    const OptionalTensor& centre, const OptionalTensor& rotation, at::ScalarType dtype, std::string_view codebook);

inline bool is_packed(const at::Tensor& codes) {
  return codes.scalar_type() == at::kByte;
}

} // namespace int4kv
