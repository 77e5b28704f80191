// The two ops of a decode step as the dispatcher has them: for those who call them without Python.
#pragma once
#include "ops.h"

namespace int4kv {

using QuantizeKv = void(
    const at::Tensor& k, const at::Tensor& v, at::Tensor& k_codes, at::Tensor& k_scales, at::Tensor& v_codes, at::Tensor& v_scales,
    c10::SymInt position, const OptionalTensor& k_centre, const OptionalTensor& v_centre, const OptionalTensor& k_rotation,
    const OptionalTensor& v_rotation, const OptionalTensor& k_recent, const OptionalTensor& v_recent, std::string_view codebook);

using Attend = at::Tensor(
    const at::Tensor& q, const at::Tensor& k_codes, const at::Tensor& k_scales, const at::Tensor& v_codes, const at::Tensor& v_scales,
    c10::SymInt start, c10::SymInt end, double scale, const OptionalTensor& k_rotation, const OptionalTensor& v_rotation,
    const OptionalTensor& v_centre, const OptionalTensor& k_recent, const OptionalTensor& v_recent, c10::SymInt recent_start,
    c10::SymInt recent_window, const OptionalTensor& k_sink, const OptionalTensor& v_sink, const OptionalTensor& mask, bool causal,
    c10::SymInt window, double softcap, std::string_view codebook);

} // namespace int4kv
