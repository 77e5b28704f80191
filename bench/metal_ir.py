"""The kernels of csrc/metal as optimised LLVM IR, each for one use of it: what is always so there is told to the compiler.

The rig translates Metal to C++; clang compiles it for a GPU (amdgcn, for its address spaces): inlined and unrolled, but
not vectorised.
"""

import re
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "csrc" / "gpu")]

import embed_metal  # noqa: E402
from rig.msl import toolchain  # noqa: E402
from rig.msl.translate import CLANG, translate  # noqa: E402

TARGET = ["-target", "amdgcn", "-nogpulib", "-Wno-everything", "-O2", "-S", "-emit-llvm"]
TRANSLATING = ["-x", "clcpp", "-cl-std=CLC++1.0", "-cl-no-stdinc", "-fdeclspec", "-Xclang", "-disable-llvm-passes"]
OPTIMISING = ["-x", "ir", "-fno-vectorize", "-fno-slp-vectorize", "-mllvm", "-unroll-threshold=5000"]
PARAMETERS = ROOT / "csrc" / "metal" / "parameters.h"
FORMAT = ROOT / "csrc" / "format.h"
NUMBERS = [f"-D{name}={value}" for path in (PARAMETERS, FORMAT)
           for name, value in re.findall(r"#define (INT4KV_\w+) (\w+)", path.read_text())]
CONSTANT_LOAD = re.compile(r"= load [^,]+, ptr addrspace\(4\) .*")


class Case(NamedTuple):
    """A kernel, by its host name, in one use: `given` are C++ conditions on p, its parameters of type `parameters`, and on constants."""

    name: str
    kernel: str
    parameters: str
    given: tuple


class Compiling:
    """The translator's dialect: C++ for OpenCL against metal_ir.h, one function for each case."""

    header = "metal_ir.h"
    keeps_address_spaces = True

    def __init__(self, cases):
        self.cases = cases
        self.variables = 0

    def threadgroup_variable(self, variable_type, name):
        self.variables += 1
        alias = f"metal_variable_{self.variables}"
        return (f"using {alias} = {variable_type}; "
                f"threadgroup {alias}& {name} = *(threadgroup {alias}*)metal_threadgroup_variable(sizeof({alias})); ")

    def function_constant(self, constant_type, name, _):
        return f"extern constant {constant_type} {name};"

    def kernel_entry(self, host_name, function, *_):
        return " ".join(written(case, function) for case in self.cases if case.kernel == host_name)


def written(case, function):
    """The case as a class, and the function that its IR is looked up by."""
    assumptions = " ".join(f"__builtin_assume({condition});" for condition in case.given)
    return (f"struct case_{case.name} {{ template <typename T> static void given(const T&) {{}} "
            f"static void given(constant {case.parameters}& p) {{ {assumptions} }} "
            f"template <typename... A> static void call(A... a) {{ {function}(a...); }} }}; "
            f"template struct Entry<decltype({function}), case_{case.name}>;")


def symbol_of(case):
    """A part of the name of the case's function that no other case's has."""
    return f"case_{case.name}E"


def compile_cases(cases):
    """LLVM's text of every case of `cases`, which is one module.

    Raises ToolError with the compiler's messages, MissingTool with the package to install, ValueError for a kernel that is
    not there.
    """
    toolchain.compiler_version()
    with tempfile.TemporaryDirectory() as folder:
        metal, code, module = (Path(folder) / name for name in ("int4kv.metal", "int4kv.clcpp", "int4kv.ll"))
        metal.write_text(embed_metal.source(), encoding="ascii")
        code.write_text(translated(metal, cases) + "#pragma clang attribute pop\n")
        plain = toolchain.run([CLANG, *TARGET, *TRANSLATING, *NUMBERS, f"-I{Path(__file__).parent}", code, "-o", "-"])
        module.write_text(with_invariant_loads(plain))
        for _ in range(2):  # the first pass finds which side's parameters are read, the second what is known of them
            module.write_text(toolchain.run([CLANG, *TARGET, *OPTIMISING, module, "-o", "-"]))
        return module.read_text()


def translated(metal, cases):
    translation = translate(metal, dialect=Compiling(cases))
    missing = {case.kernel for case in cases} - set(translation.host_names)
    if missing:
        there = ", ".join(translation.host_names)
        raise ValueError(f"csrc/metal has no kernel {', '.join(sorted(missing))}; it has {there}")
    return translation.text


def with_invariant_loads(code):
    """The module, told that no kernel changes what it reads as `constant`."""
    return CONSTANT_LOAD.sub(lambda load: f"{load[0]}, !invariant.load !900000", code) + "!900000 = !{}\n"
