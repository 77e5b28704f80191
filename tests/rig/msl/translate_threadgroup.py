"""Threadgroup variables in a kernel's body, lifted into memory that the threads of a threadgroup share."""
from .translate_tokens import (
    Problem, after_group, generated, layout, one_line, previous_code, split_commas, top_level, without_attributes)

STATEMENT_ENDS = ("{", "}", ";", ":")


def lift_variables(tokens, dialect, in_kernel):
    """The body with every `threadgroup T x[N];` written by `dialect.threadgroup_variable(type, name)`."""
    out, i = [], 0
    while i < len(tokens):
        if tokens[i].text == "threadgroup" and starts_statement(tokens, i):
            end = statement_end(tokens, i)
            out += statement(tokens[i:end + 1], dialect, in_kernel)
            i = end + 1
        else:
            out.append(tokens[i])
            i += 1
    return out


def starts_statement(tokens, i):
    before = previous_code(tokens, i)
    return before < 0 or tokens[before].text in STATEMENT_ENDS


def statement_end(tokens, i):
    while tokens[i].text != ";":
        i = after_group(tokens, i)
        if i >= len(tokens):
            raise Problem("';' is missing after a declaration", tokens[-1])
    return i


def statement(tokens, dialect, in_kernel):
    declared = tokens[1:-1]
    signs = [declared[i].text for i in top_level(declared)]
    if any(sign in ("*", "&", "&&", "(") for sign in signs):
        return tokens
    check(tokens[0], declared, signs, in_kernel)
    kept, _ = without_attributes(declared)
    written = "".join(variables(kept, dialect))
    return [generated(written, tokens[0])] + layout(tokens)


def check(token, declared, signs, in_kernel):
    if not in_kernel:
        raise Problem("a threadgroup variable must be declared in a kernel", token)
    if "=" in signs or "{" in signs:
        raise Problem("a threadgroup variable cannot have an initialiser", token)


def variables(declared, dialect):
    base = None
    for declarator in split_commas(declared):
        name = name_index(declarator)
        base = base or one_line(declarator[:name])
        dimensions = one_line(declarator[name + 1:])
        yield dialect.threadgroup_variable(base + dimensions, declarator[name].text)


def name_index(declarator):
    names = []
    for i in top_level(declarator):
        if declarator[i].text == "[":
            break
        if declarator[i].kind == "name":
            names.append(i)
    return names[-1]
