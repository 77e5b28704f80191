"""Fetches Python wheels made for macOS and keeps the few parts that a compiler and a linker need.

The cache is $INT4KV_MACOS_CACHE, or the folder cache beside this file: one folder a wheel, put in place by one rename, so
that an interrupted run starts again where it stopped and several processes may ask at once. Once filled, no network is needed.
"""
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from .macho import MachO

CACHE = Path(os.environ.get("INT4KV_MACOS_CACHE") or Path(__file__).parent / "cache").resolve()

# Kept as they are. Libraries are only read: what they export, import and send is kept as LINKS.
FILES = {
    "torch": ("torch/include/*",),
    "ziglang": ("ziglang/lib/libcxx/include/*", "ziglang/lib/libcxxabi/include/*",
                "ziglang/lib/libc/include/any-darwin-any/*", "ziglang/lib/libc/darwin/libSystem.tbd"),
    "mlx": ("mlx/include/metal_cpp/*",),
    "pyobjc-framework-Metal": ("Metal/_Metal.cpython-311-darwin.so", "Metal/_metadata.py"),
    "pyobjc-core": (),
}
LIBRARIES = {
    "torch": tuple(f"torch/lib/lib{name}.dylib" for name in ("c10", "torch", "torch_cpu", "torch_python")),
    "ziglang": (),
    "mlx": ("mlx/lib/libmlx.dylib", "mlx/core.cpython-311-darwin.so"),
    "pyobjc-framework-Metal": ("Metal/_Metal.cpython-311-darwin.so",),
    "pyobjc-core": ("objc/_objc.cpython-311-darwin.so",),
}
LINKS = "links.json"
PIP = ["--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--only-binary=:all:",
       "--platform=macosx_14_0_arm64", "--python-version=3.11"]

# torch: the newest patch of every minor that int4kv supports.
# mlx 0.12.2 carries the metal-cpp of macOS 14: newer API is not declared.
TORCH = {"2.13": "2.13.0", "2.14": "2.14.1", "2.15": "2.15.0"}
SYSTEM = {"ziglang": "0.17.1", "mlx": "0.12.2", "pyobjc-framework-Metal": "12.2.2", "pyobjc-core": "13.0"}


def torch(minor):
    """The folder that holds torch/include of the macOS wheel of that minor ("2.13"), and LINKS."""
    return wheel("torch", TORCH[minor])


def system(name):
    return wheel(name, SYSTEM[name])


def metal_cpp():
    """The folder of Apple's metal-cpp for macOS 14: Foundation/*.hpp, Metal/*.hpp."""
    return system("mlx") / "mlx/include/metal_cpp"


def links(folder):
    """{file name: {"install_name", "exports": [symbol], "imports": {symbol: library}, "libraries", "selectors"}}"""
    return json.loads((folder / LINKS).read_text())


def wheel(name, version):
    """The folder with the parts of a wheel that FILES and LIBRARIES name; downloaded when it is not there."""
    folder = CACHE / f"{name}-{version}"
    if not folder.exists():
        with locked(f"{name}-{version}"), tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            if not folder.exists():
                unpack(download(name, version, Path(scratch)), name, Path(scratch) / "parts")
                os.rename(Path(scratch) / "parts", folder)
    return folder


@contextmanager
def locked(name):
    """One process at a time; the others wait."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f".{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def download(name, version, folder):
    command = [sys.executable, "-m", "pip", "download", *PIP, f"--dest={folder}", f"{name}=={version}"]
    unconstrained = os.environ | {"PIP_CONSTRAINT": os.devnull}  # which versions this machine is to install says nothing about a Mac's wheels
    done = subprocess.run(command, capture_output=True, text=True, env=unconstrained)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        raise RuntimeError(f"cannot download the macOS wheel of {name} {version}: is there a network? pip said:\n"
                           f"{done.stderr[-1500:]}\nA filled cache needs none: set INT4KV_MACOS_CACHE to one (now {CACHE}).")
    return found[0]


def unpack(path, name, folder):
    """Writes the wanted parts under folder, facts about the libraries as LINKS; removes the wheel."""
    facts = {}
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        for member in archive.namelist():
            if matches(member, FILES[name]):
                archive.extract(member, folder)
            if matches(member, LIBRARIES[name]):
                facts[Path(member).name] = link_facts(archive.extract(member, scratch))
    folder.mkdir(exist_ok=True)
    (folder / LINKS).write_text(json.dumps(facts))
    path.unlink()


def matches(member, patterns):
    return any(fnmatch(member, pattern) for pattern in patterns)


def link_facts(path):
    file = MachO(path)
    return {"install_name": file.install_name, "exports": file.exports(), "imports": file.imports(),
            "libraries": file.libraries, "selectors": file.selectors()}

