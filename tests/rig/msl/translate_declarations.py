"""A scope of Metal source as a sequence of declarations, without understanding their types."""
from dataclasses import dataclass, field

from .translate_tokens import LAYOUT, Token, after_group, closing, closing_angle, code, next_code, previous_code

TYPE_WORDS = ("struct", "class", "union")
ACCESS_WORDS = ("public", "private", "protected")
SPECIFIERS = ("typedef", "static", "constexpr", "const", "inline", "constant", "device", "thread", "threadgroup")
CALL_LIKE = ("__attribute__", "__declspec", "decltype", "alignas", "explicit", "noexcept", "static_assert")


@dataclass
class Declaration:
    """`head` is all before the body; `parameters` indexes the parenthesis in head that opens the parameter list."""
    kind: str  # layout, simple, namespace, type, enum or function
    head: list
    parameters: int | None = None
    body: list = field(default_factory=list)
    opening: Token | None = None
    closing: Token | None = None

    @property
    def words(self):
        return [token.text for token in code(self.head)]


def declarations(tokens):
    """Every token of a namespace or class body, in order, as declarations."""
    i = 0
    while i < len(tokens):
        declaration, i = one_declaration(tokens, i)
        yield declaration


def one_declaration(tokens, start):
    first = tokens[start]
    if first.kind in LAYOUT or first.text == ";":
        return Declaration("layout", [first]), start + 1
    colon = next_code(tokens, start)
    if first.text in ACCESS_WORDS and colon < len(tokens) and tokens[colon].text == ":":
        return Declaration("layout", tokens[start:colon + 1]), colon + 1
    end, parameters = head_end(tokens, start)
    head = tokens[start:end]
    if end >= len(tokens) or tokens[end].text == ";":
        return Declaration("simple", tokens[start:end + 1], parameters), end + 1
    close = closing(tokens, end)
    kind = body_kind(head, parameters)
    return Declaration(kind, head, parameters, tokens[end + 1:close], tokens[end], tokens[close]), close + 1


def head_end(tokens, start):
    """(index of the ';' or of the '{' of a body, index of the parameter list within the head or None)."""
    i, parameters, initialised = start, None, False
    while i < len(tokens):
        text = tokens[i].text
        if text == ";":
            break
        if text == "operator":
            i = operator_end(tokens, i)
            continue
        if text == "(" and parameters is None and tokens[previous_code(tokens, i)].text not in CALL_LIKE:
            parameters = i - start
        if text == "{" and not initialised and not is_member_initialiser(tokens, start, i, parameters):
            break
        initialised |= text == "="
        opens_list = text != "<" or tokens[previous_code(tokens, i)].kind == "name"
        i = after_group(tokens, i) if opens_list else i + 1
    return i, parameters


def operator_end(tokens, i):
    """Index of the parameter list of the operator function named at `i`; its name may be any sign, even `()`."""
    i = next_code(tokens, i)
    if tokens[i].text in ("(", "["):
        return next_code(tokens, closing(tokens, i))
    while tokens[i].text != "(":
        i = next_code(tokens, i)
    return i


def is_member_initialiser(tokens, start, brace, parameters):
    """Whether `{` belongs to `constructor(...) : member{...}, other{...} {`."""
    if parameters is None or tokens[previous_code(tokens, brace)].kind != "name":
        return False
    after = next_code(tokens, closing(tokens, brace))
    in_list = any(token.text == ":" for token in tokens[start + parameters:brace])
    return in_list and after < len(tokens) and tokens[after].text in (",", "{")


def body_kind(head, parameters):
    words = [token for token in code(without_template(head)) if token.text not in SPECIFIERS]
    first = words[0].text if words else ""
    if first == "namespace" or (first == "extern" and parameters is None):
        return "namespace"
    if first == "enum":
        return "enum"
    return "type" if first in TYPE_WORDS and parameters is None else "function"


def without_template(head):
    """The head after its `template <...>` parts."""
    tokens = code(head)
    while len(tokens) > 1 and tokens[0].text == "template" and tokens[1].text == "<":
        tokens = tokens[closing_angle(tokens, 1) + 1:]
    return tokens
