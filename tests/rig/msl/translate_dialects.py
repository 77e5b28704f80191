"""What the translator writes for the constructs that C++ lacks: for running, and for checking address spaces."""


class Running:
    """C++17 against shim/metal_shim.h."""

    header = "metal_shim.h"
    keeps_address_spaces = False

    def __init__(self):
        self.count = 0

    def threadgroup_variable(self, variable_type, name):
        self.count += 1
        alias, key = f"msl_type_{self.count}", f"msl_key_{self.count}"
        return (f"using {alias} = {variable_type}; static char {key}; {alias}& {name} = *static_cast<{alias}*>("
                f'msl_threadgroup_variable(&{key}, sizeof({alias}), alignof({alias}), "{name}")); ')

    def function_constant(self, constant_type, name, index):
        return f'static const {constant_type} {name} = msl::function_constant<{constant_type}>("{name}", {index});'

    def kernel_entry(self, host_name, function, parameters, bindings):
        """A namespace-scope object that registers `function` (cast to `parameters` if those are given)."""
        self.count += 1
        number, pointer = self.count, f"&{function}"
        if parameters is not None:
            pointer = f"static_cast<void (*)({parameters})>({pointer})"
        table = ", ".join(binding.written() for binding in bindings) or "0, 0"
        run, count = f"&msl::Thunk<decltype({pointer}), {pointer}>::run", len(bindings)
        return (f" static const int bindings_{number}[] = {{{table}}}; static msl::Register register_{number}"
                f'("{host_name}", {run}, bindings_{number}, {count}, __FILE__, __LINE__);')


class Checking:
    """C++ for OpenCL against lint/metal_lint.h: every address space is real, and kernels are never run."""

    header = "metal_lint.h"
    keeps_address_spaces = True

    def __init__(self):
        self.count = 0

    def threadgroup_variable(self, variable_type, name):
        self.count += 1
        alias = f"msl_type_{self.count}"
        return f"using {alias} = {variable_type}; threadgroup {alias}& {name} = *(threadgroup {alias}*)0; "

    def function_constant(self, constant_type, name, index):
        return f"constexpr constant {constant_type} {name} = {constant_type}(1);"

    def kernel_entry(self, host_name, function, parameters, bindings):
        if "<" not in function:
            return ""
        return f" template decltype({function}) {function};"
