"""Metal wants an address space on every pointer and reference; C++ has none, so this is read off the words."""
from .translate_overloads import ADDRESS_SPACES
from .translate_tokens import Problem, closing, closing_angle, code, split_commas, top_level

SIGNS = ("*", "&", "&&")
QUALIFIERS = ("const", "constexpr", "static", "volatile", "inline", "friend", "typename", "extern", "explicit")
NOT_TYPES = ("return", "else", "case", "using", "typedef", "sizeof", "operator", "template", "goto", "do")
ARITHMETIC = {"unsigned", "signed", "char", "short", "int", "long"}
DECLARATOR_ENDS = ("=", ";", ",", "[", "(", "{", ":", ")")
MESSAGE = "a pointer or reference needs an address space: device, constant, thread or threadgroup"


def check_parameters(tokens):
    """Raises Problem for a parameter of a function that is a pointer or reference without address space."""
    for part in split_commas(tokens):
        words = code(part)
        top = [words[i] for i in top_level(words)]
        end = next((i for i, token in enumerate(top) if token.text == "="), len(top))
        if any(token.text == "(" for token in top[:end]):
            continue
        signs = [token for token in top[:end] if token.text in SIGNS]
        spaces = [token for token in top[:end] if token.text in ADDRESS_SPACES]
        if len(spaces) < len(signs):
            raise Problem(MESSAGE, words[-1])


def check_declaration(words):
    """Raises Problem if the declaration that the tokens start with is a pointer or reference without address space."""
    words = code(words)
    declared = pointer_declarator(words, 0)
    if declared:
        raise Problem(MESSAGE, declared)


def check_body(tokens):
    """Raises Problem for a local variable or a cast of a function body that lacks an address space."""
    words = code(tokens)
    starts = True
    for i, token in enumerate(words):
        is_loop_start = token.text == "(" and i and words[i - 1].text == "for"
        if starts and pointer_declarator(words, i):
            raise Problem(MESSAGE, pointer_declarator(words, i))
        if token.text == "(" and is_cast(words, i):
            raise Problem(MESSAGE, token)
        if token.text == "<" and i and words[i - 1].text.endswith("_cast"):
            check_cast(words[i + 1:closing_angle(words, i)], token)
        starts = token.text in ("{", "}", ";") and not in_loop_header(words, i) or bool(is_loop_start)


def in_loop_header(words, i):
    """Whether the `;` at `i` separates the parts of a `for`: what follows it is an expression."""
    if words[i].text != ";":
        return False
    depth = 0
    for token in words[i::-1]:
        depth += (token.text == ")") - (token.text == "(")
        if depth < 0:
            return True
        if token.text in ("{", "}"):
            return False
    return False


def pointer_declarator(words, i):
    """The token that the declaration starting at `i` declares, if it is a pointer or reference lacking a space."""
    i, spaces = qualified(words, i, 0)
    i = type_end(words, i)
    if i is None:
        return None
    i, spaces = qualified(words, i, spaces)
    signs = 0
    while i < len(words) and words[i].text in SIGNS:
        signs += 1
        i, spaces = qualified(words, i + 1, spaces)
    declares = signs and i + 1 < len(words) and words[i].kind == "name" and words[i + 1].text in DECLARATOR_ENDS
    return words[i] if declares and words[i].text not in NOT_TYPES and spaces < signs else None


def qualified(words, i, spaces):
    while i < len(words) and words[i].text in QUALIFIERS + ADDRESS_SPACES:
        spaces += words[i].text in ADDRESS_SPACES
        i += 1
    return i, spaces


def type_end(words, i):
    """Index after the type name that starts at `i`, or None."""
    if i < len(words) and words[i].text == "::":
        i += 1
    while i + 1 < len(words) and {words[i].text, words[i + 1].text} <= ARITHMETIC:
        i += 1
    while i < len(words) and words[i].kind == "name" and words[i].text not in NOT_TYPES:
        i += 1
        if i < len(words) and words[i].text == "<":
            end = closing_angle(words, i)
            if end is None:
                return None
            i = end + 1
        if i >= len(words) or words[i].text != "::":
            return i
        i += 1
    return None


def is_cast(words, i):
    """Whether `(` opens a cast `(float*)x` to a pointer without address space."""
    before = words[i - 1] if i else None
    if before is not None and (before.kind == "name" and before.text != "return" or before.text in (")", "]", ">")):
        return False
    inner = words[i + 1:closing(words, i)]
    return lacks_space(inner)


def check_cast(inner, token):
    if lacks_space(inner):
        raise Problem(MESSAGE, token)


def lacks_space(type_words):
    signs = 0
    while type_words and type_words[-1].text in SIGNS:
        type_words, signs = type_words[:-1], signs + 1
    spaces = sum(token.text in ADDRESS_SPACES for token in type_words)
    i, _ = qualified(type_words, 0, 0)
    return bool(signs) and type_end(type_words, i) is not None and spaces < signs
