// Ops whose dispatch inside torch asks for mps code that a Linux build has not got.
#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <limits>

#include "aten_aliases.h"

namespace {

using namespace at;

std::optional<Tensor> additive_mask(const std::optional<Tensor>& mask, const Tensor& q) {
  if (!mask || mask->scalar_type() != kBool) return mask;
  return at::zeros_like(*mask, q.options()).masked_fill_(mask->logical_not(), -std::numeric_limits<float>::infinity());
}

Tensor scaled_dot_product_attention(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, double dropout, bool causal,
    std::optional<double> scale, bool enable_gqa) {
  return std::get<0>(at::_scaled_dot_product_attention_math(
      q, k, v, additive_mask(mask, q), dropout, causal, std::nullopt, scale, enable_gqa));
}

Tensor convolution_on_host(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntArrayRef stride, IntArrayRef padding,
    IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups) {
  rig::HostAliases aliases;
  const auto host_bias = bias ? std::optional<Tensor>(aliases.host(*bias)) : std::nullopt;
  return aliases.device(at::convolution(
      aliases.host(input), aliases.host(weight), host_bias, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward_on_host(
    const Tensor& gradient, const Tensor& input, const Tensor& weight, IntArrayRef stride, IntArrayRef padding,
    IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups, std::array<bool, 3> wanted) {
  rig::HostAliases aliases;
  const int64_t bias_size = gradient.size(1);
  const auto [to_input, to_weight, to_bias] = at::convolution_backward(
      aliases.host(gradient), aliases.host(input), aliases.host(weight), IntArrayRef(bias_size), stride, padding, dilation,
      transposed, output_padding, groups, wanted);
  return {aliases.device(to_input), aliases.device(to_weight), aliases.device(to_bias)};
}

} // namespace

TORCH_LIBRARY_IMPL(aten, MPS, m) {
  m.impl("scaled_dot_product_attention", scaled_dot_product_attention);
  m.impl("convolution_overrideable", convolution_on_host);
  m.impl("convolution_backward_overrideable", convolution_backward_on_host);
}

TORCH_LIBRARY_IMPL(aten, AutogradMPS, m) {
  m.impl("scaled_dot_product_attention", scaled_dot_product_attention);
}
