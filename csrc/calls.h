// The two ops of a decode step as plain functions of int4kv._C.
#pragma once
#include <pybind11/pybind11.h>

namespace int4kv {

// Adds _C.attend and _C.quantize_kv: the arguments of torch.ops.int4kv.attend and quantize_kv, positional or named.
void add_calls(pybind11::module_& module);

} // namespace int4kv
