"""Compiles the emulated mps device and ops for it. Results are kept by the hash of what they are made of.

Several processes may build at once: one compiles, the others wait for its files.
"""

import fcntl
import functools
import glob
import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

RIG = Path(__file__).resolve().parent
PROJECT = RIG.parent.parent
BUILD = Path(os.environ.get("INT4KV_RIG_BUILD", RIG / "build"))
CLANG = "clang++-19"
PACKAGES = "apt-get install clang-19 libgnustep-base-dev libblocksruntime-dev"
JOBS = 2

BASE = ["-std=c++20", "-O1", "-fPIC", "-fblocks", "-pthread", "-Wall", "-Wextra"]
OBJECTIVE_C = [
    "-fexceptions", "-fobjc-exceptions", "-D_NATIVE_OBJC_EXCEPTIONS", "-DGNUSTEP", "-DGNUSTEP_BASE_LIBRARY=1",
    "-DGNU_RUNTIME=1", "-fconstant-string-class=NSConstantString", "-fno-strict-aliasing",
    "-isystem", "/usr/include/GNUstep",
]  # fmt: skip
# Metal's methods have arguments that the double does not need.
DEVICE_ONLY = [f"-I{RIG}", "-Wno-unused-parameter"]
# One translation unit each: torch's headers cost more than the code.
DEVICE_UNITS = {
    "native.cpp": ["counters.cpp", "dispatch_queue.cpp", "device_memory.cpp", "kernel_instance.cpp", "metal_compiler.cpp",
                   "launch_recorder.cpp", "recorded_dispatch.cpp", "personality.cpp"],
    "metal.mm": ["metal_buffer.mm", "metal_library.mm", "metal_encoder.mm", "metal_command_buffer.mm", "metal_device.mm"],
    "mps.mm": ["mps_device.mm", "mps_stream.mm", "mps_allocator.mm", "mps_guard.mm", "mps_generator.mm", "mps_hooks.mm",
               "mps_profiler.mm"],
    "aten.cpp": ["aten_aliases.cpp", "aten_fallback.cpp", "aten_tensors.cpp", "aten_operators.cpp"],
}  # fmt: skip


class BuildError(RuntimeError):
    """A tool is missing (the message says what to install) or a source does not compile (the compiler's text)."""


@functools.cache
def objective_c_headers():
    """The folder of GCC's Objective-C runtime headers, which Debian's GNUstep is built for."""
    found = sorted(glob.glob("/usr/lib/gcc/*/*/include/objc/objc.h"))
    present = [shutil.which(CLANG), glob.glob("/usr/include/GNUstep/Foundation"), glob.glob("/usr/include/Block.h"), found]
    if not all(present):
        raise BuildError(f"the emulated mps device needs {CLANG}, GNUstep and the blocks runtime: {PACKAGES}")
    return str(Path(found[-1]).parent.parent)


def include_flags():
    headers = Path(torch.__file__).parent / "include"
    folders = [RIG / "include", headers, headers / "torch" / "csrc" / "api" / "include"]
    return [word for folder in folders for word in ("-isystem", str(folder))]


def library_flags():
    libraries = str(Path(torch.__file__).parent / "lib")
    torch_flags = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch_cpu", "-ltorch", "-lc10"]
    runtime_flags = [f"-L{Path(objective_c_headers()).parent}", "-lgnustep-base", "-lobjc", "-lBlocksRuntime"]
    return [*torch_flags, *runtime_flags, "-Wl,--no-undefined", "-pthread", "-ldl"]


def compile_flags(source):
    """Flags for an Objective-C++ or C++ source by its name, without those that only one library wants."""
    language = [*OBJECTIVE_C, "-idirafter", objective_c_headers()] if str(source).endswith(".mm") else []
    return [*BASE, *include_flags(), *language]


def precompiled_header():
    """torch's mps headers, parsed once for all Objective-C++ sources."""
    source = RIG / "torch_mps.h"
    command = [CLANG, *compile_flags("torch_mps.mm"), "-x", "objective-c++-header", str(source)]
    key = content_hash([source, *double_headers()], command)
    return make(BUILD / f"torch_mps-{key}.pch", command)


def content_hash(paths, words):
    """Names the content of files, the words of a command, and torch."""
    digest = hashlib.sha256("\n".join([torch.__version__, sys.platform, *words]).encode())
    for path in sorted(map(str, paths)):
        digest.update(path.encode() + b"\0" + Path(path).read_bytes())
    return digest.hexdigest()[:20]


@contextmanager
def locked():
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def make(path, command):
    """Runs a command that ends with -o PATH so that the file appears whole or not at all."""
    if not path.exists():
        partial = path.with_name(f"{os.getpid()}-{path.name}")
        run([*command, "-o", str(partial)])
        partial.rename(path)
    return path


def compile_object(source, flags, depends):
    header = ["-include-pch", str(precompiled_header())] if source.suffix == ".mm" else []
    command = [CLANG, *compile_flags(source), *header, *flags, "-c", str(source)]
    name = f"{source.stem}-{content_hash([source, *depends], command)}.o"
    return make(BUILD / name, command)


def build_library(name, sources, flags, headers, libraries=()):
    """A shared library from a dict: each source with the other sources it includes. All may include the headers."""
    with locked(), ThreadPoolExecutor(JOBS) as pool:
        precompiled_header()
        work = [pool.submit(compile_object, source, flags, [*parts, *headers]) for source, parts in sources.items()]
        objects = [each.result() for each in work]
        command = [CLANG, "-shared", *map(str, objects), *map(str, libraries), *library_flags()]
        key = content_hash(objects, command)
        path = BUILD / f"lib{name}_{key}.so"
        return make(path, [*command, f"-Wl,-soname,{path.name}", f"-Wl,-rpath,{BUILD}"])


def build_device():
    """The library that, once loaded, is torch's mps device. Returns its path."""
    headers = [*double_headers(), *RIG.glob("*.h"), RIG / "msl" / "kernel_library.h"]
    units = {write_unit(name, parts): [RIG / part for part in parts] for name, parts in DEVICE_UNITS.items()}
    return build_library("rig_mps", units, DEVICE_ONLY, headers)


def write_unit(name, parts):
    BUILD.mkdir(parents=True, exist_ok=True)
    return write_whole(BUILD / name, "".join(f'#include "{part}"\n' for part in parts))


def write_whole(path, text):
    """Leaves a file that has this text already as it is: its date is what other tools go by."""
    if not path.exists() or path.read_text() != text:
        partial = path.with_name(f"{os.getpid()}-{path.name}")
        partial.write_text(text)
        partial.rename(path)
    return path


def double_headers():
    """The doubles of Apple's headers."""
    return [path for path in (RIG / "include").rglob("*") if path.is_file()]


def build_ops(sources=None, name="int4kv_mps", flags=("-Werror", "-fvisibility=hidden")):
    """Ops for the device: by default the project's csrc/mps and csrc/gpu and its checks. Returns the library's path."""
    csrc = PROJECT / "csrc"
    sources = project_ops() if sources is None else sources
    generated = embed_kernels()
    headers = [*csrc.rglob("*.h"), *generated.glob("*.h"), *double_headers()]
    every = {Path(source): [] for source in [*sources, RIG / "personality.cpp"]}
    return build_library(name, every, [*flags, f"-I{csrc}", f"-I{generated}"], headers, [build_device()])


def project_ops():
    """The project's sources of the ops on mps."""
    csrc = PROJECT / "csrc"
    return [*sorted((csrc / "mps").glob("*.mm")), *sorted((csrc / "gpu").glob("*.cpp")), *sorted(csrc.glob("check*.cpp"))]


def embed_kernels():
    """The folder of int4kv_metal_source.h, the kernels as text, written anew when csrc/metal changed."""
    script = PROJECT / "csrc" / "gpu" / "embed_metal.py"
    folder = BUILD / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    if script.exists():
        own = folder / f"{os.getpid()}-source"
        run([sys.executable, str(script), str(own)])
        write_whole(folder / "int4kv_metal_source.h", own.read_text())
        own.unlink()
    return folder
