"""Tokens of preprocessed Metal source, each knowing the file and line it came from."""
import re

PATTERN = re.compile(r"""
    (?P<directive>^\#[^\n]*)
  | (?P<blank>[ \t\r\f\v]+)
  | (?P<newline>\n)
  | (?P<string>"(?:\\.|[^"\\\n])*")
  | (?P<character>'(?:\\.|[^'\\\n])*')
  | (?P<number>\.?[0-9](?:[eEpP][+-]|[A-Za-z0-9_.'])*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<sign>::|->|\+\+|--|<<=|<<|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|.)
""", re.M | re.S | re.X | re.A)
LINE_MARKER = re.compile(r'#\s*(?:line\s+)?(\d+)\s+"((?:\\.|[^"\\])*)"')
CLOSING = {"(": ")", "[": "]", "{": "}"}
LAYOUT = ("directive", "blank", "newline")


class Problem(Exception):
    """What is wrong with the source and where: `file:line: error: message`."""

    def __init__(self, message, token=None):
        super().__init__(f"{token.file}:{token.line}: error: {message}" if token else f"error: {message}")

    @classmethod
    def at(cls, file, line, message):
        return cls(message, Token("place", "", file, line))

    @classmethod
    def of_compiler(cls, messages):
        """A compiler's own messages, which have their places already."""
        problem = cls("")
        problem.args = (messages.rstrip(),)
        return problem


class Token:
    __slots__ = ("kind", "text", "file", "line")

    def __init__(self, kind, text, file=None, line=0):
        self.kind, self.text, self.file, self.line = kind, text, file, line

    def __repr__(self):
        return self.text


def tokenize(source, file="<source>"):
    """Every character of `source` in order, so that joining the texts gives it back."""
    tokens, line = [], 1
    for match in PATTERN.finditer(source):
        token = Token(match.lastgroup, match.group(), file, line)
        tokens.append(token)
        marker = token.kind == "directive" and LINE_MARKER.match(token.text)
        if marker:
            file, line = marker[2], int(marker[1]) - 1
        elif token.kind == "newline":
            line += 1
    return tokens


def generated(text, like):
    """A piece of output that stands where the token `like` stood."""
    return Token("generated", text, like.file, like.line)


def source_text(tokens):
    return "".join(token.text for token in tokens)


def one_line(tokens):
    """The tokens as one line of text, a blank between any two."""
    return " ".join(token.text for token in code(tokens))


def code(tokens):
    """The tokens without white space and directives."""
    return [token for token in tokens if token.kind not in LAYOUT]


def layout(tokens):
    """Only what keeps later lines where they were: newlines and directives."""
    return [token for token in tokens if token.kind in ("newline", "directive")]


def next_code(tokens, i):
    """Index of the next token after `i` that is not white space; len(tokens) at the end."""
    i += 1
    while i < len(tokens) and tokens[i].kind in LAYOUT:
        i += 1
    return i


def previous_code(tokens, i):
    """Index of the token before `i` that is not white space; -1 at the beginning."""
    i -= 1
    while i >= 0 and tokens[i].kind in LAYOUT:
        i -= 1
    return i


def closing(tokens, i):
    """Index of the bracket that closes the one at `i`."""
    opened, closed, depth = tokens[i].text, CLOSING[tokens[i].text], 0
    for j in range(i, len(tokens)):
        if tokens[j].text == opened:
            depth += 1
        elif tokens[j].text == closed:
            depth -= 1
            if depth == 0:
                return j
    raise Problem(f"'{opened}' is never closed", tokens[i])


def closing_angle(tokens, i):
    """Index of the '>' that closes the template list at `i`, or None where '<' is a comparison."""
    depth, j = 0, i
    while j < len(tokens):
        text = tokens[j].text
        if text in CLOSING:
            j = closing(tokens, j)
        elif text == "<":
            depth += 1
        elif text == ">":
            depth -= 1
            if depth == 0:
                return j
        elif text in (";", ")", "]", "}"):
            return None
        j += 1
    return None


def after_group(tokens, i):
    """Index after the token at `i`, or after the whole bracket or template list that it opens."""
    if tokens[i].text in CLOSING:
        return closing(tokens, i) + 1
    if tokens[i].text == "<":
        end = closing_angle(tokens, i)
        return i + 1 if end is None else end + 1
    return i + 1


def top_level(tokens):
    """Indices of the tokens outside every bracket and template list; brackets count by their opening."""
    i = 0
    while i < len(tokens):
        yield i
        i = after_group(tokens, i)


def split_commas(tokens):
    """The parts of a parameter or argument list."""
    parts, i = [[]], 0
    while i < len(tokens):
        end = after_group(tokens, i)
        if tokens[i].text == ",":
            parts.append([])
        else:
            parts[-1] += tokens[i:end]
        i = end
    return parts


def without_attributes(tokens):
    """(tokens without their [[...]], list of attributes: each a list of code tokens)."""
    kept, attributes, i = [], [], 0
    while i < len(tokens):
        if tokens[i].text == "[" and i + 1 < len(tokens) and tokens[i + 1].text == "[":
            end = closing(tokens, i)
            attributes += [code(part) for part in split_commas(tokens[i + 2:end - 1]) if code(part)]
            kept += layout(tokens[i:end + 1])
            i = end + 1
        else:
            kept.append(tokens[i])
            i += 1
    return kept, attributes
