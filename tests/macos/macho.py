"""Reads what a linker and the Objective-C runtime see of an arm64 Mach-O file: libraries, imports, exports, sections.

The layouts are those of <mach-o/loader.h>, <mach-o/fat.h> and <mach-o/nlist.h>.
"""
import struct
from pathlib import Path

ARM64 = 0x0100000C
FAT, FAT_64, MACHO_64 = 0xCAFEBABE, 0xCAFEBABF, 0xFEEDFACF
SYMTAB, LOAD_DYLIB, ID_DYLIB, SEGMENT_64 = 0x2, 0xC, 0xD, 0x19
LOAD_WEAK_DYLIB, REEXPORT_DYLIB = 0x80000018, 0x8000001F
DYLD_INFO, DYLD_INFO_ONLY, EXPORTS_TRIE, CHAINED_FIXUPS = 0x22, 0x80000022, 0x80000033, 0x80000034
BUILD_VERSION, RPATH = 0x32, 0x8000001C
LOADS = (LOAD_DYLIB, LOAD_WEAK_DYLIB, REEXPORT_DYLIB)
UNDEFINED_TYPE, TYPE_MASK, EXTERNAL, STABS = 0x0, 0x0E, 0x01, 0xE0
FLAT_LOOKUP = 254
FLAT = "flat lookup"


class MachO:
    """One file, or the arm64 part of a universal one.

    libraries   [(install name, current version, compatibility version)] in the order of load commands
    sections    {name: (address, size, file offset)}; segments: [(address, size, file offset, file size)]
    """

    def __init__(self, path):
        self.data = arm64_part(Path(path).read_bytes(), path)
        self.libraries, self.segments, self.sections = [], [], {}
        self.install_name = self.minimum_os = None
        self.chained, self.rpaths = False, []
        self._symbols = self._trie = (0, 0)
        offset = 32
        for _ in range(self.u32(16)):
            command, size = struct.unpack_from("<II", self.data, offset)
            self._read_command(command, offset)
            offset += size

    def u32(self, offset):
        return struct.unpack_from("<I", self.data, offset)[0]

    def text(self, offset):
        return self.data[offset:self.data.index(b"\0", offset)].decode()

    def _read_command(self, command, at):
        if command == SEGMENT_64:
            self._read_segment(at)
        elif command in LOADS or command == ID_DYLIB:
            self._read_library(command, at)
        elif command == SYMTAB:
            self._symbols = struct.unpack_from("<IIII", self.data, at + 8)
        elif command in (DYLD_INFO, DYLD_INFO_ONLY):
            self._trie = struct.unpack_from("<II", self.data, at + 40)
        elif command == EXPORTS_TRIE:
            self._trie = struct.unpack_from("<II", self.data, at + 8)
        elif command == BUILD_VERSION:
            self.minimum_os = version(self.u32(at + 12))
        elif command == RPATH:
            self.rpaths.append(self.text(at + self.u32(at + 8)))
        elif command == CHAINED_FIXUPS:
            self.chained = True

    def _read_segment(self, at):
        address, size, offset, file_size = struct.unpack_from("<4Q", self.data, at + 24)
        self.segments.append((address, size, offset, file_size))
        for section in range(at + 72, at + 72 + 80 * self.u32(at + 64), 80):
            name = self.data[section:section + 16].rstrip(b"\0").decode()
            self.sections[name] = struct.unpack_from("<QQI", self.data, section + 32)

    def _read_library(self, command, at):
        name_offset, _, current, compatible = struct.unpack_from("<4I", self.data, at + 8)
        name = self.text(at + name_offset)
        if command == ID_DYLIB:
            self.install_name = name
        else:
            self.libraries.append((name, version(current), version(compatible)))

    def imports(self):
        """{symbol: install name of the library it is bound to, or FLAT}"""
        offset, count, strings, _ = self._symbols
        found = {}
        for name, kind, _, description, _ in struct.iter_unpack("<IBBHQ", self.data[offset:offset + 16 * count]):
            if kind & EXTERNAL and not kind & STABS and kind & TYPE_MASK == UNDEFINED_TYPE:
                found[self.text(strings + name)] = self._library_of(description >> 8)
        return found

    def _library_of(self, ordinal):
        return self.libraries[ordinal - 1][0] if 0 < ordinal < FLAT_LOOKUP else FLAT

    def exports(self):
        """Every name in the export trie, which is what dyld and the linker look names up in."""
        start, size = self._trie
        trie = self.data[start:start + size]
        names, open_nodes = [], [(0, b"")] if size else []
        while open_nodes:
            node, prefix = open_nodes.pop()
            terminal, at = uleb(trie, node)
            if terminal:
                names.append(prefix.decode())
            open_nodes += children(trie, at + terminal, prefix)
        return sorted(names)

    def selectors(self):
        """Every Objective-C selector that the file sends or implements."""
        _, size, offset = self.sections.get("__objc_methname", (0, 0, 0))
        return sorted({name.decode() for name in self.data[offset:offset + size].split(b"\0") if name})


def arm64_part(data, path):
    magic = struct.unpack_from(">I", data)[0]
    if magic in (FAT, FAT_64):
        layout = ">5I" if magic == FAT else ">IIQQII"
        for index in range(struct.unpack_from(">I", data, 4)[0]):
            cpu, _, offset, size = struct.unpack_from(layout, data, 8 + index * struct.calcsize(layout))[:4]
            if cpu == ARM64:
                return data[offset:offset + size]
    elif struct.unpack_from("<II", data) == (MACHO_64, ARM64):
        return data
    raise ValueError(f"{path}: not a Mach-O file with an arm64 part")


def version(packed):
    return f"{packed >> 16}.{packed >> 8 & 255}.{packed & 255}"


def uleb(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def children(trie, at, prefix):
    count, at, found = trie[at], at + 1, []
    for _ in range(count):
        end = trie.index(b"\0", at)
        node, next_child = uleb(trie, end + 1)
        found.append((node, prefix + trie[at:end]))
        at = next_child
    return found
