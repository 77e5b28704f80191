"""CUDA C++ to C++: each PTX instruction becomes a call of a function of that name (shim/ptx.h), operands in their order."""
import re

STATEMENT = re.compile(r'\basm(?: volatile)?\(("[^"]*")(.*?)\);', re.DOTALL)
DYNAMIC = "extern __shared__ __attribute__((aligned(128))) type name[]"
CONSTRAINT = re.compile(r'"[=+]?\w"\(')

# Registers a kernel with the executor: its buffers in their order, then its parameters.
REGISTRATION = """
namespace {{
template <typename Buffers, typename P>
void call(void (*kernel)(Buffers, P)) {{
  Buffers buffers;
  for (int i = 0; i < {buffers}; i++) buffers.at[i] = msl_buffer(i);
  kernel(buffers, *static_cast<const P*>(msl_buffer({buffers})));
}}
void run_kernel(const int*) {{ call(&{name}); }}
const int bindings[] = {{{bindings}}};
const bool registered = (msl_register("{name}", &run_kernel, bindings, {buffers} + 1), true);
}}  // namespace
"""


def translate(source: str, name: str, buffers: int) -> str:
    """The program of one kernel, which binds so many buffers and then its parameters."""
    body = STATEMENT.sub(instruction, source).replace("__shared__ alignas(128)", "alignas(128) static").replace(DYNAMIC, "alignas(128) static type name[count]")
    bindings = ", ".join(f"msl::bound_buffer, {i}" for i in range(buffers + 1))
    return '#include "cuda.h"\n' + body + REGISTRATION.format(name=name, buffers=buffers, bindings=bindings)


def instruction(statement: re.Match) -> str:
    """mma.sync {%0, %1}, %2, 16; : "+f"(x), "+f"(y) : "r"(z)  ->  ptx::mma_sync(x, y, z, 16);"""
    words = statement[1].strip('"; ')
    if not words:
        return "void();"
    mnemonic, _, operands = words.partition(" ")
    expressions = operand_expressions(statement[2])
    arguments = [argument.strip("[]{} ") for argument in operands.split(",") if argument]
    values = [expressions[int(argument[1:])] if argument.startswith("%") else argument for argument in arguments]
    return f"ptx::{mnemonic.replace('.', '_')}({', '.join(values)});"


def operand_expressions(text: str) -> list[str]:
    """The C++ between the parentheses of every operand."""
    found, at = [], 0
    while match := CONSTRAINT.search(text, at):
        at, depth = match.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(text[at], 0)
            at += 1
        found.append(text[match.end() : at - 1])
    return found
