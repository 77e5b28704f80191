"""Words and bytes that Metal does not have, although C++ does."""
from pathlib import Path

from .translate_tokens import Problem, next_code

FORBIDDEN = {
    "double": "Metal has no double: use float", "goto": "Metal has no goto",
    "new": "Metal cannot allocate: no new", "delete": "Metal cannot allocate: no delete",
    "try": "Metal has no exceptions: no try", "catch": "Metal has no exceptions: no catch",
    "throw": "Metal has no exceptions: no throw", "virtual": "Metal has no virtual functions",
    "dynamic_cast": "Metal has no dynamic_cast", "typeid": "Metal has no typeid",
    "thread_local": "Metal has no thread_local", "asm": "Metal has no inline assembly",
    "noexcept": "Metal has no exceptions: no noexcept", "register": "Metal has no register variables",
    "vertex": "vertex is a keyword of Metal, for kernels that are not run here",
    "fragment": "fragment is a keyword of Metal, for kernels that are not run here"}
TOO_LONG = "Metal has no long long and no long double: long has 64 bits"


def check_words(tokens, source):
    """Raises Problem at the first word, name or byte that is not Metal's."""
    for i, token in enumerate(tokens):
        if token.kind == "name":
            check_word(tokens, i)
        elif not token.text.isascii():
            raise Problem(f"non-ASCII characters: {token.text!r}", token)
    folder = source.resolve().parent
    for file in {token.file for token in tokens}:
        if file and Path(file).exists() and folder in Path(file).resolve().parents:
            check_bytes(Path(file))


def check_word(tokens, i):
    token = tokens[i]
    if token.text in FORBIDDEN and not is_deleted_function(tokens, i):
        raise Problem(FORBIDDEN[token.text], token)
    if token.text == "long" and tokens[next_code(tokens, i)].text in ("long", "double"):
        raise Problem(TOO_LONG, token)
    if token.text == "std" and tokens[next_code(tokens, i)].text == "::":
        raise Problem("Metal has no std:: namespace: its library is metal::", token)


def is_deleted_function(tokens, i):
    """`T(const T&) = delete;` is Metal too."""
    return tokens[i].text == "delete" and tokens[next_code(tokens, i)].text == ";"


def check_bytes(file):
    """The source's own files are embedded in programs: pure ASCII, comments too."""
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.isascii():
            raise Problem.at(str(file), number, "non-ASCII characters")
