#!/usr/bin/env python3
"""Compiles a .metal file into a shared library of kernels that run on the CPU (interface: kernel_library.h).

    python tests/rig/msl/compile.py SOURCE.metal OUTPUT.so [-I DIR] [-D NAME=VALUE]
        [--sanitize thread|address|undefined] [--only REGEX] [--fp-contract fast|off] [--no-lint]

Messages go to standard error as `file.metal:LINE: error: ...`; the exit status is then 1.
"""
import argparse
import json
import os
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "rig.msl"

from . import toolchain
from .lint import check_address_spaces
from .lint_recursion import check_recursion
from .toolchain import MissingTool, ToolError, cache_folder, digest
from .translate import translate
from .translate_tokens import Problem


def compile_metal(source, output, include_dirs=(), defines=(), sanitize=None, only=None, fp_contract="fast",
                  lint=True):
    """Compiles the file `source` to the shared library `output` and returns the output's path.

    `only`: a pattern, the kernels to keep by host name. `fp_contract`: "fast" fuses a * b + c where the source's
    pragmas allow it, "off" nowhere. `lint`: check address spaces. Raises Problem for what is wrong with the source.
    """
    source, output = Path(source).resolve(), Path(output)
    options = [[str(d) for d in include_dirs], [str(d) for d in defines], sanitize, only, fp_contract, lint]
    key = digest([source.name, source.read_bytes(), json.dumps(options), tools_digest()])
    record = cache_folder() / f"{key}.json"
    if not is_current(record, source.parent):
        build(source, record, *options)
    toolchain.install(library_of(record), output)
    return output


def build(source, record, include_dirs, defines, sanitize, only, fp_contract, lint):
    """Translates, checks and compiles into the cache."""
    translation = translate(source, include_dirs, defines, only)
    if lint:
        check_address_spaces(source, include_dirs, defines, only)
    with toolchain.scratch_folder() as scratch:
        cpp, code, library = scratch / "kernels.cpp", scratch / "kernels.ll", scratch / "kernels.so"
        cpp.write_text(translation.text)
        try:
            toolchain.intermediate(cpp, code, sanitize, fp_contract, source.parent)
        except ToolError as error:
            raise Problem.of_compiler(str(error)) from None
        check_recursion(code.read_text(), source.parent)
        toolchain.shared_library(code, library, sanitize, fp_contract)
        (scratch / "record").write_text(json.dumps(contents_of(translation.files, source.parent)))
        library.replace(library_of(scratch / "record", record.stem))
        (scratch / "record").replace(record)


def library_of(record, key=None):
    """The library built from the sources that the record lists: its name follows from their contents."""
    return cache_folder() / f"{digest([key or record.stem, record.read_bytes()])}.so"


def contents_of(files, folder):
    """{file: digest of its content}; files in the source's folder are named relative to it, wherever that is."""
    names = {f: os.path.relpath(f, folder) if Path(f).is_relative_to(folder) else f for f in files}
    return {name: digest([Path(f).read_bytes()]) for f, name in names.items()}


def is_current(record, folder):
    """Whether every file that was read for the cached library is still the same."""
    if not record.exists() or not library_of(record).exists():
        return False
    contents = json.loads(record.read_text())
    return all((folder / f).exists() and digest([(folder / f).read_bytes()]) == d for f, d in contents.items())


def tools_digest():
    """Changes with the translator, the shim, the executor and the compiler."""
    folder = toolchain.FOLDER
    patterns = ("*.py", "*.h", "*.cpp", "shim/*", "lint/*", "headers/*")
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    return digest([toolchain.compiler_version(), *toolchain.cpu_flags(), *(f.read_bytes() for f in files)])


def build_replay(sanitize=None):
    """The program that runs recorded dispatches again (replay.cpp), built with a sanitizer or without; its path."""
    source = toolchain.FOLDER / "replay.cpp"
    flags = ["-std=c++17", "-O2", "-g", *toolchain.sanitizer_flags(sanitize)]
    headers = sorted(toolchain.FOLDER.glob("*.h"))
    name = digest([source.read_bytes(), *(h.read_bytes() for h in headers), *flags, toolchain.compiler_version()])
    path = cache_folder() / f"replay-{name}"
    with toolchain.made_once(path) as program:
        if program:
            toolchain.run([toolchain.CLANG, *flags, source, "-ldl", "-rdynamic", "-o", program])
    return path


def main(arguments=None):
    options = parser().parse_args(arguments)
    try:
        compile_metal(options.source, options.output, options.include, options.define, options.sanitize, options.only,
                      options.fp_contract, options.lint)
    except (Problem, ToolError, MissingTool) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


def parser():
    parse = argparse.ArgumentParser(description="Compiles Metal kernels for the CPU.")
    parse.add_argument("source", metavar="SOURCE.metal")
    parse.add_argument("output", metavar="OUTPUT.so")
    parse.add_argument("-I", dest="include", metavar="DIR", action="append", default=[])
    parse.add_argument("-D", dest="define", metavar="NAME=VALUE", action="append", default=[])
    parse.add_argument("--sanitize", choices=toolchain.SANITIZERS)
    parse.add_argument("--only", metavar="REGEX", help="compile only kernels whose name matches")
    parse.add_argument("--fp-contract", choices=("fast", "off"), default="fast")
    parse.add_argument("--lint", action=argparse.BooleanOptionalAction, default=True,
                       help="check address spaces with clang's C++ for OpenCL (default)")
    return parse


if __name__ == "__main__":
    sys.exit(main())
