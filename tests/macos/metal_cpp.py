"""Reads metal-cpp, Apple's C++ face of Foundation and Metal: which classes, protocols, selectors and constants there are.

Apple generates metal-cpp from the SDK's headers. It is regular: every method is an inline function that sends one selector,

    _MTL_INLINE void MTL::CommandBuffer::addCompletedHandler(const MTL::CommandBufferHandler block)
    {
        Object::sendMessage<void>(this, _MTL_PRIVATE_SEL(addCompletedHandler_), block);
    }

and two headers spell the names: _MTL_PRIVATE_DEF_SEL(addCompletedHandler_, "addCompletedHandler:").
"""
import re
from collections import namedtuple

Class = namedtuple("Class", "namespace name base copying")  # base: (namespace, name) or None
Enumeration = namedtuple("Enumeration", "namespace name kind type members")  # members: [(name, value text or None)]
Method = namedtuple("Method", "owner sign selector result arguments namespace")  # C++ type texts; arguments: [type]

SELECTOR = re.compile(r'_(?:MTL|NS)_PRIVATE_DEF_SEL\(\s*(\w+),\s*"([^"]+)"\s*\)')
PROTOCOL = re.compile(r"_MTL_PRIVATE_DEF_PRO\(\s*(\w+)\s*\)")
CLASS_OBJECT = re.compile(r"_(?:MTL|NS)_PRIVATE_DEF_CLS\(\s*(\w+)\s*\)")
NAMESPACE = r"^namespace (?P<namespace>\w+)"
CLASS = re.compile(NAMESPACE + r"|^\s*class (?P<name>\w+) : public (?:NS::)?(?P<via>\w+)"
                   r"(?:\s*<(?:class )?\w+(?:,\s*(?P<base>[\w:]+))?\s*>)?\s*$", re.M)
ENUMERATION = re.compile(NAMESPACE + r"|_(?:MTL|NS)_(?P<kind>ENUM|OPTIONS)\(\s*(?P<type>[\w:]+),\s*(?P<name>\w+)\s*\)"
                         r"\s*\{(?P<members>.*?)\};", re.M | re.S)
ALIAS = re.compile(NAMESPACE + r"|^using (?P<name>\w+)\s*=\s*(?P<type>[^;]+);", re.M)
DEFINITION = re.compile(r"_(?:MTL|NS)_INLINE\s+(?P<result>[^\n(]+?)\s*\b(?P<namespace>MTL|NS)::(?P<owner>\w+)::\w+\s*"
                        r"\((?P<arguments>[^\n]*)\)\s*(?:const)?\s*\n\{(?P<body>.*?)\n\}", re.S)
SEND = re.compile(r"Object::sendMessage(?:Safe)?<.*?>\(\s*(?:_(?:MTL|NS)_PRIVATE_CLS\((?P<receiver>\w+)\)|\w+)\s*,"
                  r"\s*_(?:MTL|NS)_PRIVATE_SEL\(\s*(?P<selector>\w+)\s*\)", re.S)
# Protocols of the SDK that metal-cpp spells as classes, for they are never looked up by name.
UNNAMED_PROTOCOLS = {"MTLFunctionStitchingAttribute", "MTLFunctionStitchingNode"}


class MetalCpp:
    """selectors {accessor: selector}, protocols {name}, class_objects {name}, classes {(namespace, name): Class},
    enumerations {Objective-C name: Enumeration}, aliases {(namespace, name): C++ type text}, methods [Method]"""

    def __init__(self, root):
        files = sorted(root.glob("Foundation/*.hpp")) + sorted(root.glob("Metal/*.hpp"))
        self.texts = [path.read_text(errors="replace").replace("std::uint64_t", "uint64_t") for path in files]
        everything = "\n".join(self.texts)
        self.selectors = dict(SELECTOR.findall(everything))
        self.protocols = set(PROTOCOL.findall(everything)) - {"symbol"} | UNNAMED_PROTOCOLS
        self.class_objects = set(CLASS_OBJECT.findall(everything)) - {"symbol"}
        self.classes = {(c.namespace, c.name): c for c in self._each(CLASS, class_of)}
        self.enumerations = {e.namespace + e.name: e for e in self._each(ENUMERATION, enumeration_of)}
        self.aliases = dict(self._each(ALIAS, lambda namespace, m: ((namespace, m["name"]), m["type"].strip())))
        self.methods = [method for text in self.texts for method in self._methods(text)]

    def _each(self, pattern, make):
        """make(namespace, match) for every match, the namespace being the last one opened before it."""
        for text in self.texts:
            namespace = None
            for match in pattern.finditer(text):
                if match["namespace"]:
                    namespace = match["namespace"]
                else:
                    yield make(namespace, match)

    def _methods(self, text):
        for match in DEFINITION.finditer(text):
            send = SEND.search(match["body"])
            if send and "Function&" not in match["arguments"]:
                owner = send["receiver"] or match["namespace"] + match["owner"]
                arguments = [argument_type(argument) for argument in split(match["arguments"])]
                yield Method(owner, "+" if send["receiver"] else "-", self.selectors[send["selector"]], match["result"].strip(),
                             arguments, match["namespace"])


def class_of(namespace, match):
    base = match["base"] and tuple(match["base"].split("::"))
    if base and len(base) == 1:
        base = (namespace, *base)
    return Class(namespace, match["name"], base, match["via"] == "Copying")


def enumeration_of(namespace, match):
    members = re.sub(r"//.*", "", match["members"]).split(",")
    pairs = [[part.strip() for part in member.partition("=")[::2]] for member in members if member.strip()]
    values = [(name, value or None) for name, value in pairs]
    return Enumeration(namespace, match["name"], match["kind"], match["type"], values)


def split(arguments):
    """At the commas outside brackets."""
    pieces, depth = [""], 0
    for character in arguments:
        depth += (character in "(<[") - (character in ")>]")
        if character == "," and not depth:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces if piece.strip()]


def argument_type(argument):
    """"const Object* const objects[]" -> "const Object* const[]"; a type alone stays what it is."""
    match = re.fullmatch(r"(.*[\s*])\w+(\[\])?", argument, re.S)
    return match[1].strip() + (match[2] or "") if match else argument
