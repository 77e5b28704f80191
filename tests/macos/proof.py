"""What others saw of Apple's SDK, to hold our declarations against.

pyobjc's Metal binding was compiled by Apple's clang on a Mac. Its library carries the SDK's protocols with the type encoding of
every method, its _metadata.py the values of the constants.
"""
import re

from . import protocols, wheels
from .crosscompile import Compiler

CONSTANT = re.compile(r"\$?(MTL\w+)@(-?\d+)")


def sdk_protocols():
    """{protocol: {"-selector": extended type encoding}}"""
    return protocols.read(wheels.system("pyobjc-framework-Metal") / "Metal/_Metal.cpython-311-darwin.so")


def our_protocols(minor, names):
    """The same for our declarations, as clang encodes them."""
    text = "#import <Metal/Metal.h>\nProtocol *protocols[] = {" + ", ".join(f"@protocol({name})" for name in names) + "};\n"
    compiler = Compiler(minor)
    return protocols.read(compiler.link([compiler.compile_text("protocols.mm", text)], "protocols.so"))


def sdk_constants():
    """{name: value}"""
    text = (wheels.system("pyobjc-framework-Metal") / "Metal/_metadata.py").read_text()
    return {name: int(value) for name, value in CONSTANT.findall(text)}


def check_constants(minor, values):
    """Refused by the compiler, with the names, where a constant of ours has another value."""
    text = "#import <Metal/Metal.h>\n"
    for name, value in values.items():
        text += f'static_assert((long long){name} == (long long){value % 2**64}ULL, "{name}");\n'
    Compiler(minor).compile_text("constants.mm", text)


def selectors_of_torch(minor):
    """Every selector that torch's own macOS libraries send."""
    return {selector for facts in wheels.links(wheels.torch(minor)).values() for selector in facts["selectors"]}
