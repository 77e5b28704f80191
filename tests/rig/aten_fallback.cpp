// Every aten op without an mps kernel of its own runs on the CPU over the device's memory. torch on a Mac has kernels for
// most of them; what a test sees (devices, dtypes, errors for mixed devices) is the same.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <torch/library.h>

#include <set>

#include "aten_aliases.h"
#include "modes.h"
#include "mps_generator.h"

namespace {

using at::Tensor;
using c10::IValue;

// torch allows CPU index tensors on a device's tensor.
bool may_mix_devices(const std::string& op) {
  static const std::set<std::string> accepted{"aten::index.Tensor",  "aten::index.Tensor_out",     "aten::_index_put_impl_",
                                              "aten::index_put_",    "aten::_unsafe_index.Tensor", "aten::_embedding_bag"};
  return accepted.count(op) > 0;
}

at::Generator default_mirror() {
  return rig::mirror_of(at::detail::getMPSHooks().getDefaultGenerator().unsafeGetGeneratorImpl());
}

bool is_optional_generator(const c10::Argument& argument) {
  const auto optional = argument.type()->cast<c10::OptionalType>();
  return optional && optional->getElementType()->kind() == c10::TypeKind::GeneratorType;
}

class HostCall {
 public:
  IValue argument(const IValue& value, const c10::Argument& declared) {
    if (value.isTensor()) return host(value.toTensor());
    if (value.isTensorList()) return host_list(value.toTensorList());
    if (value.isOptionalTensorList()) return host_list(value.toOptionalTensorList());
    if (value.isDevice()) return c10::Device(at::kCPU);
    if (value.isGenerator() && value.toGenerator().device().is_mps()) {
      return rig::mirror_of(value.toGenerator().unsafeGetGeneratorImpl());
    }
    if (value.isNone() && is_optional_generator(declared)) return default_mirror();
    return value;
  }

  IValue result(const IValue& value) {
    if (value.isTensor()) return aliases_.device(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<Tensor> results;
    for (const Tensor& tensor : value.toTensorList()) results.push_back(aliases_.device(tensor));
    return results;
  }

  bool has_mixed_devices() const { return has_mps_ && has_cpu_; }
  void finish() { aliases_.write_back_resized(); }

 private:
  Tensor host(const Tensor& tensor) {
    if (tensor.defined()) {
      has_mps_ |= tensor.is_mps();
      has_cpu_ |= tensor.is_cpu() && tensor.dim() > 0;
    }
    return aliases_.host(tensor);
  }
  std::optional<Tensor> host(const std::optional<Tensor>& tensor) {
    return tensor ? std::optional<Tensor>(host(*tensor)) : std::nullopt;
  }
  template <typename List>
  List host_list(const List& tensors) {
    List hosts;
    for (size_t i = 0; i < tensors.size(); i++) hosts.push_back(host(tensors.get(i)));
    return hosts;
  }

  rig::HostAliases aliases_;
  bool has_mps_ = false, has_cpu_ = false;
};

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto name = c10::toString(op.operator_name());
  if (rig::modes().log_fallbacks) std::fprintf(stderr, "[rig] on the CPU: %s\n", name.c_str());
  TORCH_CHECK_NOT_IMPLEMENTED(
      name.rfind("aten::", 0) == 0, "Could not run '", name,
      "' with arguments from the 'MPS' backend: it has no mps kernel");
  HostCall call;
  const auto arguments = schema.arguments().size(), first = stack->size() - arguments;
  for (size_t i = 0; i < arguments; i++) (*stack)[first + i] = call.argument((*stack)[first + i], schema.arguments()[i]);
  TORCH_CHECK(
      !call.has_mixed_devices() || may_mix_devices(name),
      "Expected all tensors to be on the same device, but found at least two devices, mps:0 and cpu! (", name, ")");
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.finish();
  const auto results = schema.returns().size(), first_result = stack->size() - results;
  for (size_t i = 0; i < results; i++) (*stack)[first_result + i] = call.result((*stack)[first_result + i]);
}

} // namespace

TORCH_LIBRARY_IMPL(_, MPS, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}
