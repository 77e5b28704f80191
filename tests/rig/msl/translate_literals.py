"""Literals and pragmas whose meaning differs between Metal and C++."""
import re

from .translate_tokens import Token

UNSUFFIXED_FLOAT = re.compile(r"[0-9']*\.[0-9']*([eE][+-]?\d+)?|[0-9']+[eE][+-]?\d+")
NARROW_FLOAT = re.compile(r"([0-9']*\.?[0-9']*(?:[eE][+-]?\d+)?)(h|H|bf|BF)")
FP_CONTRACT = re.compile(r"#\s*pragma\s+METAL\s+fp\s+contract\s*\(\s*(on|off|fast)\s*\)")
HINT = re.compile(r"#\s*pragma\s+(unroll|nounroll|METAL|clang\s+loop)")
NARROW_TYPES = {"h": "half", "bf": "bfloat"}


def with_metal_literals(tokens):
    """Metal has no double: `1.0` is a float, `1.0h` a half, `1.0bf` a bfloat. Pragmas become clang's or go."""
    return [changed(token) for token in tokens]


def changed(token):
    if token.kind == "number":
        return number(token)
    if token.kind == "directive" and "pragma" in token.text:
        return pragma(token)
    return token


def number(token):
    if UNSUFFIXED_FLOAT.fullmatch(token.text):
        return rewritten(token, token.text + "f")
    narrow = NARROW_FLOAT.fullmatch(token.text)
    if narrow:
        digits = narrow[1] if re.search("[.eE]", narrow[1]) else narrow[1] + ".0"
        return rewritten(token, f"({NARROW_TYPES[narrow[2].lower()]}({digits}f))")
    return token


def pragma(token):
    contract = FP_CONTRACT.match(token.text)
    if contract:
        return rewritten(token, f"#pragma clang fp contract({contract[1]})")
    return rewritten(token, "") if HINT.match(token.text) else token


def rewritten(token, text):
    return Token(token.kind, text, token.file, token.line)
