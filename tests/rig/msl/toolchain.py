"""The compiler that kernels and executor are built with: its commands, flags and a cache of what it made."""
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent
CLANG = "clang++-19"
PACKAGES = "apt-get install clang-19 libclang-rt-19-dev"
SANITIZERS = ("thread", "address", "undefined")
X86_64_V3 = {"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"}


class MissingTool(Exception):
    """There is no compiler; says which package has it."""


class ToolError(Exception):
    """A tool failed; its messages."""


def run(command):
    """Runs a tool and gives its standard output. Raises ToolError with its messages when it fails."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    except FileNotFoundError:
        raise MissingTool(f"error: {command[0]} is missing: {PACKAGES}") from None
    if done.returncode:
        raise ToolError(done.stderr.rstrip() or f"error: {command[0]} ended with {done.returncode}")
    return done.stdout


@functools.cache
def cpu_flags():
    if platform.machine() != "x86_64":
        return []
    flags = ["-Xclang", "-ffloat16-excess-precision=none"]  # half rounds after every operation
    with open("/proc/cpuinfo") as info:
        features = next((set(line.split()) for line in info if line.startswith("flags")), set())
    return flags + (["-march=x86-64-v3"] if X86_64_V3 <= features else [])


def sanitizer_flags(sanitize):
    if sanitize is None:
        return []
    if sanitize not in SANITIZERS:
        raise ValueError(f"sanitize is {sanitize!r}; it takes {', '.join(SANITIZERS)}")
    return [f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined"]


def common_flags(sanitize):
    return ["-O2", "-gline-tables-only", "-fPIC", "-fno-math-errno", *cpu_flags(), *sanitizer_flags(sanitize)]


def kernel_flags(sanitize, fp_contract):
    # fast-honor-pragmas: plain `fast` would contract under `#pragma METAL fp contract(off)` too
    contract = {"fast": "fast-honor-pragmas", "off": "off"}[fp_contract]
    return [*common_flags(sanitize), f"-ffp-contract={contract}", "-Wno-everything"]


def executor_flags(sanitize):
    return ["-std=c++17", "-Wall", *common_flags(sanitize)]


def intermediate(cpp, output, sanitize, fp_contract, folder):
    """C++ of a kernel library to LLVM's text form, not yet optimised, so that calls can be read off it.

    What runs names its sources relative to `folder`, so that the same sources elsewhere give the same library.
    """
    dialect = ["-std=c++17", "-fdeclspec", "-nostdinc", f"-I{FOLDER / 'shim'}", "-fno-exceptions", "-fno-rtti"]
    form = [f"-ffile-prefix-map={folder}/=", "-Xclang", "-disable-llvm-passes", "-emit-llvm", "-S"]
    run([CLANG, *dialect, *kernel_flags(sanitize, fp_contract), *form, cpp, "-o", output])


def shared_library(intermediate_code, output, sanitize, fp_contract):
    """Optimises, and links with the executor."""
    native = Path(f"{intermediate_code}.o")
    run([CLANG, *kernel_flags(sanitize, fp_contract), "-c", intermediate_code, "-o", native])
    parts = [native, *executor_objects(sanitize), "-lm"]
    run([CLANG, "-shared", "-Wl,-Bsymbolic", *sanitizer_flags(sanitize), *parts, "-o", output])


def executor_objects(sanitize):
    """The executor's object files for one sanitizer, compiled once for as long as its sources stay as they are."""
    sources = sorted(FOLDER.glob("executor*.cpp"))
    headers = sorted(FOLDER.glob("*.h")) + sorted((FOLDER / "shim").glob("*.h"))
    flags = executor_flags(sanitize)
    return [cached_object(source, headers, flags) for source in sources]


def cached_object(source, headers, flags):
    name = digest([source.read_bytes(), *(h.read_bytes() for h in headers), " ".join(flags), compiler_version()])
    with made_once(cache_folder() / f"{source.stem}-{name}.o") as output:
        if output:
            run([CLANG, *flags, "-c", source, "-o", output])
    return cache_folder() / f"{source.stem}-{name}.o"


@functools.cache
def compiler_version():
    return run([CLANG, "--version"])


def digest(parts):
    """A name for the contents: strings and bytes."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()[:24]


def cache_folder():
    """$INT4KV_RIG_BUILD/msl, or tests/rig/build/msl."""
    folder = Path(os.environ.get("INT4KV_RIG_BUILD") or FOLDER.parent / "build") / "msl"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def made_once(path):
    """Gives a path to write to, renamed to `path` at the end; None where `path` exists already."""
    if path.exists():
        yield None
        return
    with scratch_folder() as scratch:
        yield scratch / path.name
        os.replace(scratch / path.name, path)


@contextmanager
def scratch_folder():
    """A folder beside the cache, so that files can be renamed into it."""
    folder = Path(tempfile.mkdtemp(prefix="making-", dir=cache_folder()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def install(made, output):
    """Puts a copy of a cached file at `output` in one step."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f"{output.name}.{os.getpid()}")
    shutil.copy2(made, temporary)
    os.replace(temporary, output)
