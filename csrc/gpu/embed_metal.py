"""Writes csrc/metal as one C++ header: the library that Apple's compiler makes of it where there is one, the source otherwise.

    python csrc/gpu/embed_metal.py OUTPUT/int4kv_metal_source.h

setup.py and CMakeLists.txt run it. The Metal compiler comes with Xcode (`xcodebuild -downloadComponent MetalToolchain`); without
it the source is compiled on the first use.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

METAL = Path(__file__).resolve().parent.parent / "metal"
KERNELS = ("quantize", "dequantize", "attend_simd", "attend_matrix", "merge")
FLAGS = ("-std=metal3.1", "-mmacosx-version-min=14.0", "-fno-fast-math", "-O2")
INCLUDE = re.compile(r'^#include "(.+)"\n', re.MULTILINE)
LITERAL = 8000  # characters of one string literal: compilers must accept 65,536, some accept no more


def joined(path: Path, seen: set, instead: Path | None = None) -> str:
    """The file with its quoted includes in place, each once. A file of the folder `instead` is taken for one of the same name."""
    path = (instead / path.name if instead and (instead / path.name).exists() else path).resolve()
    if path in seen:
        return ""
    seen.add(path)
    return INCLUDE.sub(lambda found: joined(path.parent / found[1], seen, instead), path.read_text(encoding="ascii"))


def source() -> str:
    """All kernels as one Metal file."""
    seen = set()
    return "".join(joined(METAL / f"{name}.metal", seen) for name in KERNELS)


def has_metal_compiler() -> bool:
    if sys.platform != "darwin":
        return False
    return subprocess.run(["xcrun", "-sdk", "macosx", "metal", "--version"], capture_output=True).returncode == 0


def library(text: str) -> bytes:
    """The compiled library, or nothing where there is no Metal compiler."""
    if not has_metal_compiler():
        return b""
    with tempfile.TemporaryDirectory() as folder:
        metal, built = Path(folder) / "int4kv.metal", Path(folder) / "int4kv.metallib"
        metal.write_text(text, encoding="ascii")
        subprocess.run(["xcrun", "-sdk", "macosx", "metal", *FLAGS, str(metal), "-o", str(built)], check=True)
        return built.read_bytes()


def literals(text: str) -> str:
    """The text as adjacent raw string literals."""
    return "\n".join(f'R"METAL({text[i : i + LITERAL]})METAL"' for i in range(0, len(text), LITERAL))


def header(text: str, compiled: bytes) -> str:
    numbers = ",".join(map(str, compiled)) or "0"
    return (
        "// Written by embed_metal.py.\n#pragma once\n#include <cstddef>\n\nnamespace int4kv {\n\n"
        f"inline constexpr char kMetalSource[] =\n{literals(text)};\n\n"
        f"inline constexpr unsigned char kMetalLibrary[] = {{{numbers}}};\n"
        f"inline constexpr size_t kMetalLibraryBytes = {len(compiled)};\n\n}} // namespace int4kv\n")


def write(output: Path, written: str) -> None:
    """Write a header, and leave it untouched if it says the same already."""
    if not output.exists() or output.read_text() != written:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(written)


if __name__ == "__main__":
    write(Path(sys.argv[1]), header(source(), library(source())))
