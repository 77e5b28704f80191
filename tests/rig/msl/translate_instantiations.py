"""Explicit instantiations of kernel templates, in each of the spellings that Metal accepts:

    template [[host_name("f_half")]] [[kernel]] void f<half>(device half* x [[buffer(0)]]);
    template [[host_name("f_half")]] [[kernel]] decltype(f<half>) f<half>;
    template [[host_name("f_half")]] kernel f_type f<half>;
"""
from dataclasses import dataclass

from .translate_kernels import host_name
from .translate_tokens import Problem, closing, code, one_line, split_commas, top_level, without_attributes


@dataclass
class Instantiation:
    host_name: str
    kernel: str  # the name of the template, without its scope
    function: str  # as an expression: f<half>, scope::f<half>
    parameters: str | None  # a cast is needed when the arguments are deduced from them


def is_instantiation(tokens):
    words = code(tokens)
    return len(words) > 1 and words[0].text == "template" and words[1].text != "<"


def instantiation(tokens):
    """The Instantiation that a declaration stands for, or None where it instantiates no kernel."""
    kept, attributes = without_attributes(tokens)
    name = host_name(attributes)
    words = [token for token in code(kept) if token.text not in ("template", ";")]
    says_kernel = any(token.text == "kernel" for token in words) or any(a[0].text == "kernel" for a in attributes)
    if name is None and not says_kernel:
        return None
    words = [token for token in words if token.text != "kernel"]
    start, end, parameters = function_expression(words)
    names = [words[i].text for i in top_level(words[:end]) if i >= start and words[i].kind == "name"]
    if not names:
        raise Problem("cannot read which kernel is instantiated", words[0])
    return Instantiation(name or names[-1], names[-1], one_line(words[start:end]), parameters)


def function_expression(words):
    """(start, end) of `scope::f<arguments>` among the words, and the parameter types if they are needed."""
    if words[0].text == "decltype":
        return closing(words, 1) + 1, len(words), None
    opening = next((i for i in top_level(words) if words[i].text == "("), len(words))
    last_name = max(i for i in top_level(words[:opening]) if words[i].kind == "name")
    start = last_name
    while start >= 2 and words[start - 1].text == "::":
        start -= 2
    deduced = opening < len(words) and (last_name + 1 == opening)
    return start, opening, parameter_types(words[opening + 1:-1]) if deduced else None


def parameter_types(words):
    return ", ".join(one_line(part) for part in split_commas(words))

