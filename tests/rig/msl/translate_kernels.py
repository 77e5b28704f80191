"""Kernels: what each parameter is bound to, which Metal says in attributes and C++ has to be told."""
from dataclasses import dataclass

from .translate_overloads import ADDRESS_SPACES
from .translate_tokens import (
    Problem, closing, code, generated, one_line, source_text, split_commas, top_level, without_attributes)

MAX_BUFFERS = 31
BUFFER, THREADGROUP, BUILTIN, ABSENT = range(4)
SLOTS = {"buffer": BUFFER, "threadgroup": THREADGROUP}
SPACES_OF_SLOT = {BUFFER: ("device", "constant"), THREADGROUP: ("threadgroup",)}
BUILTINS = (
    "thread_position_in_grid", "threadgroup_position_in_grid", "thread_position_in_threadgroup", "threads_per_grid",
    "threadgroups_per_grid", "threads_per_threadgroup", "thread_index_in_simdgroup", "simdgroup_index_in_threadgroup",
    "thread_index_in_threadgroup", "simdgroups_per_threadgroup", "threads_per_simdgroup",
    "dispatch_threads_per_threadgroup", "quadgroup_index_in_threadgroup", "thread_index_in_quadgroup",
    "thread_execution_width", "dispatch_simdgroups_per_threadgroup", "grid_origin", "grid_size")
WRONG_BUILTIN_TYPES = ("bool", "char", "uchar", "short", "int", "long", "ulong", "float", "half", "int2", "int3")
FUNCTION_ATTRIBUTES = (
    "kernel", "host_name", "max_total_threads_per_threadgroup", "function_constant", "fallthrough", "maybe_unused",
    "nodiscard", "likely", "unlikely", "noinline", "always_inline", "visible", "alignas", "deprecated")


@dataclass
class Binding:
    """One kernel parameter: `kind` and `index` of the binding contract; `condition` is its function constant."""
    name: object  # the token of the parameter's name
    kind: int
    index: int | None
    condition: str | None

    def written(self):
        kind = f"(({self.condition}) ? {self.kind} : {ABSENT})" if self.condition else str(self.kind)
        return f"{kind}, {self.index}"


def is_kernel(head):
    """Whether a function's head says `kernel` or [[kernel]]."""
    kept, attributes = without_attributes(head)
    return any(token.text == "kernel" for token in kept) or any(a[0].text == "kernel" for a in attributes)


def host_name(attributes):
    """The name given by [[host_name("...")]], or None."""
    for attribute in attributes:
        if attribute[0].text == "host_name":
            return "".join(token.text[1:-1] for token in attribute if token.kind == "string")
    return None


def check_attributes(attributes, known=FUNCTION_ATTRIBUTES):
    for attribute in attributes:
        if attribute[0].text not in known and attribute[1:2] and attribute[1].text == "::":
            continue
        if attribute[0].text not in known:
            raise Problem(f"unknown attribute [[{source_text(attribute)}]]", attribute[0])


def parameter_list(tokens, kernel_name):
    """(the parameters without their attributes, their bindings) of the tokens between a kernel's parentheses."""
    plain, bindings = [], []
    for part in split_commas(tokens):
        kept, attributes = without_attributes(part)
        plain.append(kept)
        if code(kept):
            bindings.append(binding(code(kept), attributes, kernel_name))
    number_implicit(bindings)
    check_unique(bindings, kernel_name)
    return plain, bindings


def binding(tokens, attributes, kernel_name):
    name = parameter_name(tokens)
    found = Binding(name, None, None, None)
    for attribute in attributes:
        read_attribute(found, attribute)
    if found.kind is None:
        found.kind = implicit_kind(tokens, name, kernel_name)
    if found.kind == BUILTIN:
        check_builtin_type(tokens, name, kernel_name)
    else:
        check_space(tokens, found, kernel_name)
    return found


def parameter_name(tokens):
    """The last name outside brackets: `constant float (&table)[16]` and `device T* x` both give it."""
    for token in reversed(tokens[:next((i for i in top_level(tokens) if tokens[i].text == "["), len(tokens))]):
        if token.kind == "name":
            return token
    return tokens[-1]


def read_attribute(found, attribute):
    name, argument = attribute[0].text, one_line(attribute[2:-1])
    if name in SLOTS:
        found.kind, found.index = SLOTS[name], slot_index(name, argument, attribute[0])
    elif name == "function_constant":
        found.condition = argument
    elif name in BUILTINS:
        found.kind, found.index = BUILTIN, BUILTINS.index(name)
    else:
        raise Problem(f"unknown attribute [[{source_text(attribute)}]]: a parameter takes buffer(n), threadgroup(n), "
                      "function_constant(name) or a built-in such as thread_position_in_grid", attribute[0])


def slot_index(name, argument, token):
    try:
        index = int(argument, 0)
    except ValueError:
        raise Problem(f"[[{name}({argument})]]: the index must be a number", token) from None
    if not 0 <= index < MAX_BUFFERS:
        raise Problem(f"[[{name}({index})]]: the index must be 0 to {MAX_BUFFERS - 1}", token)
    return index


def implicit_kind(tokens, name, kernel_name):
    if not any(token.text in ("*", "&") for token in tokens):
        raise Problem(f"parameter '{name.text}' of kernel '{kernel_name}' has no attribute: a value must be a built-in "
                      "such as [[thread_position_in_grid]], or come as `constant T&`", name)
    return THREADGROUP if any(token.text == "threadgroup" for token in tokens) else BUFFER


def check_builtin_type(tokens, name, kernel_name):
    wrong = [token for token in tokens if token.text in WRONG_BUILTIN_TYPES]
    if wrong:
        raise Problem(f"parameter '{name.text}' of kernel '{kernel_name}' is a built-in: its type must be uint, ushort "
                      f"or a vector of them, not {wrong[0].text}", name)


def check_space(tokens, found, kernel_name):
    allowed = SPACES_OF_SLOT[found.kind]
    if any(token.text in allowed for token in tokens):
        return
    slot = "buffer" if found.kind == BUFFER else "threadgroup"
    raise Problem(f"parameter '{found.name.text}' of kernel '{kernel_name}' is a {slot}: it must be a pointer or "
                  f"reference in {' or '.join(allowed)}", found.name)


def number_implicit(bindings):
    """Parameters without an index take the free ones in order, as Metal numbers them."""
    for kind in (BUFFER, THREADGROUP):
        used = {b.index for b in bindings if b.kind == kind}
        for b in (b for b in bindings if b.kind == kind and b.index is None):
            b.index = next(i for i in range(len(bindings) + MAX_BUFFERS) if i not in used)
            used.add(b.index)


def check_unique(bindings, kernel_name):
    owner = {}
    for b in bindings:
        if b.kind == BUILTIN:
            continue
        if b.index >= MAX_BUFFERS:
            raise Problem(f"kernel '{kernel_name}' has more than {MAX_BUFFERS} buffers", b.name)
        slot = "buffer" if b.kind == BUFFER else "threadgroup"
        other = owner.setdefault((b.kind, b.index), b)
        if other is not b and not (b.condition and other.condition):
            raise Problem(f"parameters '{other.name.text}' and '{b.name.text}' of kernel '{kernel_name}' "
                          f"share [[{slot}({b.index})]]", b.name)


def plain_head(head, parameters, kept_parameters):
    """The kernel's head as a C++ function's: no `kernel`, no attributes."""
    end = closing(head, parameters)
    before, attributes = without_attributes(head[:parameters])
    after, more = without_attributes(head[end + 1:])
    check_attributes(attributes + more)
    comma = generated(", ", head[parameters])
    middle = [token for n, part in enumerate(kept_parameters) for token in ([comma] if n else []) + part]
    return [t for t in before if t.text != "kernel"] + [head[parameters]] + middle + [head[end]] + after


def outside_parameters(head, parameters):
    """The head of a declaration but for its parameters, whose attributes are another matter."""
    return head if parameters is None else head[:parameters] + head[closing(head, parameters) + 1:]


def check_return_type(before_parameters, name):
    words = [token.text for token in code(without_attributes(before_parameters)[0])]
    if "void" not in words:
        raise Problem(f"kernel '{name.text}' must return void", name)


def function_name(head, parameters):
    """The token that names the function; a name that is an address space is no name."""
    names = [token for token in code(head[:parameters]) if token.kind == "name" and token.text not in ADDRESS_SPACES]
    return names[-1]
