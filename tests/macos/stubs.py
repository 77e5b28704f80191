"""Text stubs (.tbd) that the linker resolves against, made from what real macOS binaries export and import.

torch's libraries are at hand: their stubs list every export. Apple's are not: a symbol counts as present in one of them when
a binary that Apple's own linker made (torch, mlx, pyobjc) is bound to it there. libSystem's list comes with ziglang.
"""
import re
from functools import cache
from pathlib import Path

from . import wheels
from .metal_cpp import MetalCpp

TBD = """--- !tapi-tbd
tbd-version: 4
targets: [ arm64-macos ]
install-name: '{install_name}'
current-version: {current}
compatibility-version: {compatible}
exports:
  - targets: [ arm64-macos ]
    symbols: [ {symbols} ]
    objc-classes: [ {classes} ]
...
"""
CLASS, METACLASS = "_OBJC_CLASS_$_", "_OBJC_METACLASS_$_"
METAL = "/System/Library/Frameworks/Metal.framework/Versions/A/Metal"
SYSTEM_LIBRARIES = ("libc++.1.dylib", "libobjc.A.dylib", "Foundation", "CoreFoundation", "Metal")


def write_torch(minor, folder):
    """Stubs of torch's own libraries in folder/torch; returns the linker's arguments."""
    arguments = []
    for name, facts in wheels.links(wheels.torch(minor)).items():
        stub(folder / "torch" / f"{Path(name).stem}.tbd", facts["install_name"], facts["exports"])
        arguments.append(folder / "torch" / f"{Path(name).stem}.tbd")
    return arguments


def write_system(folder):
    """Stubs of the libraries that an extension may use of macOS, in folder/system; returns the linker's arguments."""
    arguments = []
    for install_name, (symbols, versions) in harvest().items():
        path = folder / "system" / f"{Path(install_name).name}.tbd"
        stub(path, install_name, symbols, *versions)
        arguments.append(path)
    return arguments + [write_libsystem(folder / "system" / "libSystem.tbd")]


def write_libsystem(path):
    """ziglang's libSystem.tbd with the targets that ld64.lld knows: arm64e code calls the very same functions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"arm64e(\.x1)?-", "arm64-", libsystem_text()))
    return path


def libsystem_text():
    return (wheels.system("ziglang") / "ziglang/lib/libc/darwin/libSystem.tbd").read_text()


def libsystem_symbols():
    return set(re.findall(r"[\w$.]+", libsystem_text()))


@cache
def harvest():
    """{install name: ({symbol}, (current version, compatibility version))} of SYSTEM_LIBRARIES, over all binaries at hand."""
    folders = [wheels.torch(minor) for minor in wheels.TORCH] + [wheels.system(name) for name in wheels.SYSTEM]
    found = {}
    for facts in (facts for folder in folders for facts in wheels.links(folder).values()):
        versions = {name: (current, compatible) for name, current, compatible in facts["libraries"]}
        for symbol, library in facts["imports"].items():
            if Path(library).name in SYSTEM_LIBRARIES:
                found.setdefault(library, (set(), versions[library]))[0].add(symbol)
    found[METAL][0].update(metal_classes())
    return found


def metal_classes():
    """Metal's public classes: those that metal-cpp looks up by name."""
    names = MetalCpp(wheels.metal_cpp()).class_objects
    return {CLASS + name for name in names if name.startswith("MTL")}


def stub(path, install_name, symbols, current="1.0.0", compatible="1.0.0"):
    classes = sorted(name.removeprefix(CLASS) for name in symbols if name.startswith(CLASS))
    others = sorted(name for name in symbols if not name.startswith((CLASS, METACLASS)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TBD.format(install_name=install_name, current=current, compatible=compatible,
                               symbols=", ".join(map(quoted, others)), classes=", ".join(map(quoted, classes))))


def quoted(name):
    return f"'{name}'"
