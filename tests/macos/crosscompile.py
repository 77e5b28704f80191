"""Compiles and links int4kv/_C for macOS on arm64, against one minor of torch's macOS wheels.

    PYTHONPATH=tests python -m macos.crosscompile            every supported torch minor
    PYTHONPATH=tests python -m macos.crosscompile 2.15

Objects are kept by a hash of everything they depend on, in the folder build of the wheels' cache.
"""
import ctypes
import hashlib
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from . import objective_c, stubs, wheels
from .macho import MachO
from .toolchain import (HERE, LANGUAGES, REFUSED, ROOT, TORCH_EXTENSION, Refused, base_flags, python_headers, run,
                        setup_flags, tool)

LINKED_FOR = ["-arch", "arm64", "-platform_version", "macos", "14.0", "26.0", "-bundle", "-undefined", "error",
              "-dead_strip_dylibs", "-demangle"]
CSRC = ROOT / "csrc"
BUILD = wheels.CACHE / "build"
METAL_SOURCE = "int4kv_metal_source.h"
# Parsed once a minor, seen by every source of the project. An include that a source forgets is for the build on this
# machine to find.
PRECOMPILED = {".cpp": ["ATen/core/Tensor.h", "torch/library.h"],
               ".mm": ["ATen/core/Tensor.h", "torch/library.h", "ATen/mps/MPSStream.h", "Metal/Metal.h"]}


def sources():
    return sorted([*CSRC.glob("*.cpp"), *CSRC.glob("cpu/*.cpp"), *CSRC.glob("gpu/*.cpp"), *CSRC.glob("mps/*.mm")])


def build(minor, jobs=2):
    """The path of int4kv/_C as a Mach-O bundle for torch `minor` ("2.13"), compiled by so many jobs at once.

    Raises Refused with what the compiler or the linker says.
    """
    compiler = Compiler(minor)
    with wheels.locked(f"build-{minor}"), ThreadPoolExecutor(jobs) as pool:
        list(pool.map(compiler.precompiled, PRECOMPILED))
        return compiler.link(list(pool.map(compiler.compile, sources())))


class Compiler:
    """Without a minor it finds no header of torch: what it compiles is the same for every torch."""

    def __init__(self, minor=None):
        self.minor = minor
        self.headers = digest_of_headers()
        self.folder = BUILD / (minor or "without-torch")
        self.folder.mkdir(parents=True, exist_ok=True)

    def flags(self, suffix, kind=""):
        system = [declarations(), *self.torch_headers(), python_headers()]
        return [*base_flags(), *[part for folder in system for part in ("-isystem", folder)],
                "-x", LANGUAGES[suffix] + kind, *TORCH_EXTENSION, *setup_flags(), *REFUSED]

    def torch_headers(self):
        if not self.minor:
            return []
        include = wheels.torch(self.minor) / "torch/include"
        return [include, include / "torch/csrc/api/include"]

    def precompiled(self, suffix):
        """The precompiled header for sources of that suffix; those who ask while it is made wait for it."""
        text = "".join(f"#include <{header}>\n" for header in PRECOMPILED[suffix])
        command = [*self.flags(suffix, "-header"), "-fpch-instantiate-templates"]
        with wheels.locked(f"headers-{self.minor}{suffix}"):
            return self._made(f"headers{suffix}", ".pch", command, text)

    def compile(self, source):
        """The object file of a source of the project; one that includes no header of torch has one object for every torch."""
        without_torch = Compiler()
        with wheels.locked(f"without-torch-{name_of(source)}"):
            if not without_torch.missing_headers(source):
                return without_torch._object(source, [])
        return self._object(source, ["-include-pch", self.precompiled(source.suffix)])

    def missing_headers(self, source):
        """What the source and its headers include and this compiler does not find, as the compiler's list of dependencies says."""
        command = [*self.flags(source.suffix), "-I", metal_source(), "-M", "-MG"]
        rule = self._made(f"includes-{name_of(source)}", ".d", command, source.read_text(), source).read_text()
        included = re.findall(r"(?:\\ |\S)+", rule.partition(":")[2].replace("\\\n", ""))
        return {path for path in included if not Path(path).is_absolute()}

    def _object(self, source, precompiled):
        command = [*self.flags(source.suffix), *precompiled, "-I", metal_source(), "-c"]
        return self._made(name_of(source), ".o", command, source.read_text(), source)

    def compile_text(self, name, text):
        """The object file of a text, without precompiled headers. The name ends in .cpp or .mm; no other text has it."""
        return self._made(name, ".o", [*self.flags(Path(name).suffix), "-c"], text)

    def layout(self, record, header):
        """{field: offset} of a C++ class of a torch header, as the Objective-C++ compiler lays it out."""
        with tempfile.NamedTemporaryFile("w", suffix=".mm", dir=self.folder) as file:
            file.write(f"#include <{header}>\nstatic_assert(sizeof({record}));\n")
            file.flush()
            dump = ["-include-pch", self.precompiled(".mm"), "-fsyntax-only", "-Xclang", "-fdump-record-layouts"]
            dumped = run([tool("clang++-22"), *self.flags(".mm"), *dump, file.name])
        rows = dumped.partition(f"0 | class {record}\n")[2].partition("[sizeof=")[0]
        return {field: int(offset) for offset, field in re.findall(r"^ *(\d+) \|.* (\w+)$", rows, re.M)}

    def link(self, objects, name="_C.so"):
        """The bundle; every symbol must be exported by torch, by the system's libraries or, Py..., by CPython."""
        python = [part for symbol in python_symbols(objects) for part in ("-U", symbol)]
        with wheels.locked(f"link-{self.minor}"):
            libraries = stubs.write_torch(self.minor, self.folder) + stubs.write_system(self.folder)
            run([tool("ld64.lld-22"), *LINKED_FOR, *python, *objects, *libraries, "-o", self.folder / name])
        return self.folder / name

    def _made(self, name, suffix, command, text, source=None):
        """Runs clang on a source of the project or on a text, unless its result for the very same input is there."""
        key = hashlib.sha256("\0".join([*map(str, command), text, self.headers]).encode()).hexdigest()[:20]
        result = self.folder / f"{name}-{key}{suffix}"
        if not result.exists():
            forget(self.folder.glob(f"{name}-*"))
            # A precompiled header is only good while the text it was made of is there.
            written = source or write(result.with_suffix(Path(name).suffix), text)
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                run([tool("clang++-22"), *command, written, "-o", Path(scratch) / "result"])
                os.rename(Path(scratch) / "result", result)
        return result


def name_of(source):
    return "-".join(source.relative_to(CSRC).parts)


def write(path, text):
    path.write_text(text)
    return path


def forget(paths):
    for path in paths:
        path.unlink(missing_ok=True)


@cache
def declarations():
    """The folder of Objective-C declarations made from metal-cpp."""
    folder = BUILD / f"declarations-{digest([HERE / 'objective_c.py', HERE / 'metal_cpp.py'])}"
    with wheels.locked("declarations"):
        if not folder.exists():
            objective_c.write(wheels.metal_cpp(), folder.with_suffix(".partial"))
            folder.with_suffix(".partial").rename(folder)
    return folder


@cache
def metal_source():
    """The folder that holds the kernels' source as a header, which the build makes too."""
    folder = BUILD / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        run([sys.executable, CSRC / "gpu/embed_metal.py", Path(scratch) / METAL_SOURCE])
        os.rename(Path(scratch) / METAL_SOURCE, folder / METAL_SOURCE)
    return folder


@cache
def digest_of_headers():
    folders = (CSRC, metal_source(), declarations(), HERE / "include")
    return digest(sorted(path for folder in folders for path in folder.rglob("*.h")))


def digest(paths):
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:20]


def python_symbols(objects):
    """What the objects need of CPython's C API, which the process that loads the extension already holds."""
    needed = {symbol for path in objects for symbol in MachO(path).imports()}
    return sorted(symbol for symbol in needed if exported_by_python(symbol))


def exported_by_python(symbol):
    return symbol.lstrip("_").startswith("Py") and hasattr(ctypes.pythonapi, symbol.removeprefix("_"))


def main(minors):
    for minor in minors or wheels.TORCH:
        try:
            print(f"torch {wheels.TORCH[minor]}: {build(minor)} ({len(sources())} sources)")
        except Refused as problem:
            sys.exit(f"torch {wheels.TORCH[minor]}:\n{problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
