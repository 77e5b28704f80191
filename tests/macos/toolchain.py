"""clang and ld64.lld for arm64-apple-macos14, and the flags that setup.py would compile with on a Mac."""
import ast
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

from . import wheels

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TARGET = "arm64-apple-macos14.0"
PACKAGES = {"clang++-22": "clang-22", "ld64.lld-22": "lld-22"}

# A Mac's system headers come from ziglang, and so does libc++; these say how Apple configures it. With availability annotations
# what libc++ got after macOS 14 is refused; without, its headers call functions that macOS 14 has not.
LIBCXX = """_LIBCPP_ABI_VERSION=1 _LIBCPP_ABI_NAMESPACE=__1 _LIBCPP_HAS_THREADS=1 _LIBCPP_HAS_MONOTONIC_CLOCK
    _LIBCPP_HAS_TERMINAL _LIBCPP_HAS_MUSL_LIBC=0 _LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS=1 _LIBCPP_HAS_FILESYSTEM=1
    _LIBCPP_HAS_RANDOM_DEVICE _LIBCPP_HAS_LOCALIZATION _LIBCPP_HAS_UNICODE _LIBCPP_HAS_WIDE_CHARACTERS
    _LIBCPP_HAS_NO_STD_MODULES _LIBCPP_PSTL_BACKEND_SERIAL _LIBCPP_HARDENING_MODE=_LIBCPP_HARDENING_MODE_NONE
    _LIBCPP_ASSERTION_SEMANTIC_DEFAULT=_LIBCPP_ASSERTION_SEMANTIC_IGNORE""".split()
# What torch.utils.cpp_extension adds, and Python's own configuration on macOS.
TORCH_EXTENSION = ["-std=c++20", "-DTORCH_API_INCLUDE_EXTENSION_H", "-DTORCH_EXTENSION_NAME=_C", "-DNDEBUG", "-fwrapv"]
REFUSED = ["-Wall", "-Werror", "-Werror=objc-method-access", "-Werror=undeclared-selector", "-Werror=unguarded-availability"]
LANGUAGES = {".cpp": "c++", ".mm": "objective-c++"}


class Refused(Exception):
    """The compiler or the linker refused; the message is its own."""


def tool(name):
    found = shutil.which(name)
    if not found:
        raise RuntimeError(f"{name} is missing: apt-get install {PACKAGES[name]}")
    return found


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr or done.stdout)
    return done.stdout


@cache
def base_flags():
    """For any language: the target, and a Mac's headers instead of this machine's."""
    library = wheels.system("ziglang") / "ziglang/lib"
    clang = Path(run([tool("clang++-22"), "-print-resource-dir"]).strip())
    folders = [HERE / "include", library / "libcxx/include", library / "libcxxabi/include", clang / "include",
               library / "libc/include/any-darwin-any"]
    return [f"--target={TARGET}", "-nostdinc", "-nostdinc++", "-fno-sized-deallocation", *[f"-D{macro}" for macro in LIBCXX],
            *[part for folder in folders for part in ("-isystem", folder)]]


@cache
def setup_flags():
    """The list COMPILE of setup.py: the flags of a build on a Mac, where OpenMP's are not added."""
    for statement in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == "COMPILE":
            return ast.literal_eval(statement.value)
    raise RuntimeError("setup.py has no list of compiler flags named COMPILE")


@cache
def python_headers():
    """A copy of this Python's headers without its pyconfig.h: include/pyconfig.h stands in for a Mac's."""
    source = Path(sysconfig.get_path("include"))
    if not (source / "Python.h").exists():
        raise RuntimeError(f"{source}/Python.h is missing: apt-get install python3-dev")
    target = wheels.CACHE / f"python-{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    with wheels.locked(target.name):
        if not target.exists():
            scratch = target.with_suffix(".partial")
            shutil.copytree(source, scratch, ignore=shutil.ignore_patterns("pyconfig.h"), dirs_exist_ok=True)
            scratch.rename(target)
    return target
