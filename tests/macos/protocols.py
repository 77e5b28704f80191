"""Objective-C @protocol metadata of a compiled Mach-O file: method names with their extended type encodings.

A protocol record (objc4, objc-runtime-new.h), eight bytes a field unless said otherwise:
    0 isa   8 name   16 inherited   24 instance   32 class   40 optional instance   48 optional class methods
    56 properties   64 size and flags, four bytes each   72 extended types, one per method in the order of the lists
"""
import struct

from .macho import MachO

LISTS = ((24, "-"), (32, "+"), (40, "-"), (48, "+"))
RELATIVE, DIRECT_NAMES = 0x80000000, 0x40000000
CHAINED_TARGET = (1 << 36) - 1


def read(path):
    """{protocol: {"-selector" or "+selector": extended type encoding}} of an arm64 Mach-O file."""
    return ProtocolReader(MachO(path)).found


class ProtocolReader:
    def __init__(self, file):
        self.file, self.found = file, {}
        self.base = min(address for address, _, offset, size in file.segments if offset or size)
        address, size, _ = file.sections["__objc_protolist"]
        for slot in range(address, address + size, 8):
            self._protocol(self._pointer(slot))

    def _protocol(self, record):
        name = record and self._text_at(record + 8)
        if not name or name in self.found:
            return
        self.found[name] = dict(self._all_methods(record))
        inherited = self._pointer(record + 16)
        for index in range(self._raw(inherited) if inherited else 0):
            self._protocol(self._pointer(inherited + 8 + 8 * index))

    def _all_methods(self, record):
        types = self._pointer(record + 72)
        for field, sign in LISTS:
            methods = self._pointer(record + field)
            for selector in self._selectors(methods) if methods else ():
                yield sign + selector, self._text_at(types)
                types += 8

    def _selectors(self, methods):
        """A method list holds either three pointers a method, or three 32-bit offsets relative to themselves."""
        flags, count = struct.unpack_from("<II", self.file.data, self._offset(methods))
        for index in range(count):
            if flags & RELATIVE:
                entry = methods + 8 + 12 * index
                name = entry + struct.unpack_from("<i", self.file.data, self._offset(entry))[0]
                yield self._text(name) if flags & DIRECT_NAMES else self._text_at(name)
            else:
                yield self._text_at(methods + 8 + 24 * index)

    def _offset(self, address):
        for start, size, offset, _ in self.file.segments:
            if start <= address < start + size:
                return address - start + offset
        raise ValueError(f"address {address:#x} lies in no segment")

    def _raw(self, address):
        return struct.unpack_from("<Q", self.file.data, self._offset(address))[0]

    def _pointer(self, address):
        """The address stored there; None for null and for a pointer that dyld binds to another library."""
        value = self._raw(address)
        if self.file.chained and value:
            return None if value >> 63 else self.base + (value & CHAINED_TARGET)
        return value or None

    def _text(self, address):
        return self.file.text(self._offset(address))

    def _text_at(self, slot):
        return self._text(self._pointer(slot))
