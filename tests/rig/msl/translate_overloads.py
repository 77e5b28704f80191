"""Overloads that differ only in address spaces: one of each is enough on a CPU, which has a single memory."""
from .translate_declarations import without_template
from .translate_tokens import LAYOUT, closing, code, generated

ADDRESS_SPACES = ("device", "constant", "thread", "threadgroup")
SPECIFIERS = ("static", "friend", "constexpr", "inline", "explicit", "__attribute__")


class Scope:
    """What one namespace or class has declared so far."""

    def __init__(self):
        self.seen = set()

    def repeats(self, declaration):
        """Whether the declaration is an earlier one again but for its address spaces."""
        key = signature(declaration)
        has_spaces = any(token.text in ADDRESS_SPACES for token in declaration.head)
        repeated = key in self.seen and has_spaces
        self.seen.add(key)
        return repeated


def signature(declaration):
    tokens = declaration.head
    if declaration.parameters is not None:
        tokens = before_initialisers(tokens, closing(tokens, declaration.parameters))
    words = [token.text for token in code(tokens) if token.text not in ("device", "thread", "threadgroup")]
    words = ["const" if word == "constant" else word for word in words]
    return " ".join(word for i, word in enumerate(words) if word != "const" or i == 0 or words[i - 1] != "const")


def before_initialisers(tokens, parameters_end):
    """The head up to the parameter list's end and its trailing words, without address spaces and initialisers."""
    tail = []
    for token in tokens[parameters_end + 1:]:
        if token.text == ":":
            break
        if token.text not in ADDRESS_SPACES:
            tail.append(token)
    return tokens[:parameters_end + 1] + tail


def without_method_spaces(head, parameters):
    """`float norm() const device` as C++ has it: without the address space of `this`."""
    end = closing(head, parameters) + 1
    tail, in_initialisers = [], False
    for token in head[end:]:
        in_initialisers |= token.text == ":"
        if in_initialisers or token.text not in ADDRESS_SPACES:
            tail.append(token)
    return head[:end] + tail


def with_method_space(head, parameters):
    """The same with `thread` written out, which is what Metal takes `this` to be in where nothing is said."""
    end = closing(head, parameters) + 1
    before, after = without_template(head[:parameters]), code(head[end:])
    names = [token.text for token in before if token.text not in SPECIFIERS]
    has_object = "operator" in names or (len(names) > 1 and not {"static", "friend", "~"} & {t.text for t in before})
    if not has_object or any(token.text in ADDRESS_SPACES for token in after):
        return head
    while end < len(head) and (head[end].kind in LAYOUT or head[end].text == "const"):
        end += 1
    return head[:end] + [generated(" thread ", head[parameters])] + head[end:]
