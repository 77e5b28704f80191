"""Writes the program that NVRTC compiles as a C++ header: csrc/cuda/metal.h, then the kernels of csrc/metal.

    python csrc/cuda/embed_cuda.py OUTPUT/int4kv_cuda_source.h

Where this folder has a file of an included name, that one is taken; Metal's own headers are left out: metal.h stands in for them.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "gpu"))
import embed_metal  # noqa: E402

OF_METAL = re.compile(r"^#include <metal_.+>\n", re.MULTILINE)


def source() -> str:
    """One program with every kernel; macros choose which one is compiled, as metal.h says."""
    seen = set()
    kernels = [embed_metal.METAL / f"{name}.metal" for name in embed_metal.KERNELS]
    return OF_METAL.sub("", "".join(embed_metal.joined(path, seen, HERE) for path in (HERE / "metal.h", *kernels)))


def header(text: str) -> str:
    return ("// Written by embed_cuda.py.\n#pragma once\n\nnamespace int4kv {\n\n"
            f"inline constexpr char kCudaSource[] =\n{embed_metal.literals(text)};\n\n}} // namespace int4kv\n")


if __name__ == "__main__":
    embed_metal.write(Path(sys.argv[1]), header(source()))
