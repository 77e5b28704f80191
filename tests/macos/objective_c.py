"""Writes Objective-C declarations of Foundation's and Metal's classes from metal-cpp, for a compiler without Apple's SDK.

Two files: Foundation/FoundationClasses.h and Metal/MetalClasses.h. The headers in include/ add what metal-cpp does not say.
A method whose types have no plain Objective-C spelling is left out: a call of it does not compile.
"""
import re

from .metal_cpp import MetalCpp, argument_type, split

TYPE = re.compile(r"(?P<const>const )?(?P<name>[\w:]+(?: (?:int|long|char|short))*)"
                  r"(?P<stars>(?:\s*\*\s*(?:const)?)*)(?P<array>\[\])?")
BLOCK = re.compile(r"(?P<result>[\w:]+)\s*\(\^\)\s*\((?P<arguments>.*)\)")
SAME_IN_C = set("""void float double char short int long uint8_t uint16_t uint32_t uint64_t int8_t int16_t int32_t int64_t
    size_t uintptr_t unichar kern_return_t task_id_token_t dispatch_queue_t dispatch_data_t CFTimeInterval""".split()) | {
    "unsigned int", "unsigned long", "unsigned short", "unsigned char", "long long", "unsigned long long"}
RENAMED = {"bool": "BOOL", "unsigned": "unsigned int", "_Object": "id", "IOSurfaceRef": "IOSurfaceRef",
           ("NS", "UInteger"): "NSUInteger", ("NS", "Integer"): "NSInteger", ("NS", "TimeInterval"): "NSTimeInterval"}
STRUCTURES = {"MTLSize", "MTLOrigin", "MTLRegion", "MTLSamplePosition", "MTLSizeAndAlign", "MTLResourceID", "NSRange"}
GENERIC = {"NSArray": "<__covariant ObjectType>", "NSSet": "<__covariant ObjectType>",
           "NSDictionary": "<__covariant KeyType, __covariant ObjectType>"}
# NSObject is Apple's own (objc/NSObject.h, from ziglang); the others are protocols of include/Foundation/Foundation.h.
DECLARED_ELSEWHERE = {"NSObject", "NSCopying", "NSFastEnumeration", "NSSecureCoding"}


class NoSpelling(Exception):
    """The C++ type has no plain Objective-C spelling."""


def write(root, folder):
    """Writes both files under folder from the metal-cpp at root."""
    declarations = Declarations(MetalCpp(root))
    for framework, prefix in (("Foundation", "NS"), ("Metal", "MTL")):
        path = folder / framework / f"{framework}Classes.h"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["#pragma once", *declarations.of(prefix)]) + "\n")


class Declarations:
    def __init__(self, metal_cpp):
        self.source = metal_cpp
        names = [namespace + name for namespace, name in metal_cpp.classes]
        self.objects = sorted((metal_cpp.protocols | metal_cpp.class_objects | set(names)) - DECLARED_ELSEWHERE)
        self.methods = {}
        for method in metal_cpp.methods:
            self._add(method)

    def _add(self, method):
        try:
            line = self.method(method)
        except NoSpelling:
            return
        self.methods.setdefault(method.owner, {})[method.sign + method.selector] = line

    def of(self, prefix):
        """The lines for all names that begin with prefix, every name declared before its use."""
        objects = [name for name in self.objects if name.startswith(prefix)]
        yield from map(self._announcement, objects)
        for name, enumeration in sorted(self.source.enumerations.items()):
            if name.startswith(prefix):
                yield from enumeration_lines(name, enumeration)
        yield from self._blocks(prefix)
        written = set()
        for name in objects:
            yield from self._object(name, written)

    def _announcement(self, name):
        if name in self.source.protocols:
            return f"@protocol {name};"
        return f"@class {name}{GENERIC.get(name, '').replace('__covariant ', '')};"

    def _blocks(self, prefix):
        for (namespace, name), text in self.source.aliases.items():
            block = BLOCK.fullmatch(text)
            if block and namespace == prefix:
                arguments = [self.type(argument_type(a), namespace) for a in split(block["arguments"])]
                yield f"typedef {self.type(block['result'], namespace)} (^{namespace}{name})({', '.join(arguments)});"

    def _object(self, name, written):
        if name in written:
            return
        written.add(name)
        base = self._base(name)
        if base:
            yield from self._object(base, written)
        yield self._heading(name, base)
        yield from (line for _, line in sorted(self.methods.get(name, {}).items()))
        yield "@end"

    def _base(self, name):
        found = self.source.classes.get(cut(name))
        base = found and found.base and "".join(found.base)
        return base if base in self.objects else None

    def _heading(self, name, base):
        if name in self.source.protocols:
            return f"@protocol {name} <{base or 'NSObject'}>"
        found = self.source.classes.get(cut(name))
        adopted = [base] if base in self.source.protocols else ["NSCopying"] if found and found.copying else []
        superclass = base if base and base not in self.source.protocols else "NSObject"
        return f"@interface {name}{GENERIC.get(name, '')} : {superclass}" + (f" <{adopted[0]}>" if adopted else "")

    def method(self, method):
        arguments = [self.type(text, method.namespace) for text in method.arguments]
        parts = method.selector.split(":")
        if len(parts) - 1 != len(arguments):
            raise NoSpelling(f"{method.selector} with {len(arguments)} arguments")
        named = " ".join(f"{part}:({kind})a{i}" for i, (part, kind) in enumerate(zip(parts, arguments)))
        return f"{method.sign} ({self.type(method.result, method.namespace)}){named or parts[0]};"

    def type(self, text, namespace):
        """"const class Buffer* const[]" in namespace MTL -> "id<MTLBuffer> const *" """
        text = re.sub(r"\s+", " ", re.sub(r"\b(class|struct) ", "", text)).strip()
        match = TYPE.fullmatch(text)
        if not match:
            raise NoSpelling(text)
        pointers = match["stars"].count("*") + bool(match["array"])
        return self._named(match["name"], namespace, bool(match["const"] or match["array"]), pointers, match["const"] or "")

    def _named(self, name, namespace, constant, pointers, qualifier):
        plain = name if name in SAME_IN_C else RENAMED.get(name.removeprefix("CF::"))
        if plain:
            return f"{qualifier}{plain} {'*' * (pointers - (plain == 'id'))}".strip()
        for candidate in candidates(name, namespace):
            found = self._found(candidate, constant, pointers, qualifier)
            if found:
                return found
        raise NoSpelling(name)

    def _found(self, candidate, constant, pointers, qualifier):
        full = "".join(candidate)
        if candidate in RENAMED or full in STRUCTURES or full in self.source.enumerations:
            return f"{qualifier}{RENAMED.get(candidate, full)} {'*' * pointers}".strip()
        if full in self.objects or full == "NSObject":
            return self._object_type(full, constant, pointers)
        alias = self.source.aliases.get(candidate)
        if alias and BLOCK.fullmatch(alias):
            return full
        return alias and self.type(alias + "*" * pointers, candidate[0])

    def _object_type(self, name, constant, pointers):
        if not pointers:
            raise NoSpelling(f"{name} by value")
        kind = "id" if name == "NSObject" else f"id<{name}>" if name in self.source.protocols else f"{name} *"
        return f"{kind} {'const ' if constant and pointers > 1 else ''}{'*' * (pointers - 1)}".strip()


def candidates(name, namespace):
    *outer, last = name.split("::")
    return [(outer[-1], last)] if outer else [(namespace, last), ("NS", last), ("MTL", last)]


def cut(name):
    """"NSString" -> ("NS", "String") """
    return ("NS", name[2:]) if name.startswith("NS") else ("MTL", name[3:])


def enumeration_lines(name, enumeration):
    members = {member for member, _ in enumeration.members}
    prefix = enumeration.namespace
    base = {"UInteger": "NSUInteger", "Integer": "NSInteger"}.get(enumeration.type.split("::")[-1], enumeration.type)
    yield f"typedef NS_{enumeration.kind}({base}, {name}) {{"
    for member, value in enumeration.members:
        spelled = value and re.sub(r"\b(?:NS::)?([A-Z]\w+)", lambda m: spelling(m[1], members, prefix), value)
        yield f"  {prefix}{member}" + (f" = {spelled}," if value else ",")
    yield "};"


def spelling(word, members, prefix):
    return prefix + word if word in members else {"UIntegerMax": "NSUIntegerMax"}.get(word, word)
