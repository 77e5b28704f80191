"""Reads and writes launches in the format of replay.cpp and replays them: sanitizers need a process without Python."""
import io
import os
import shutil
import struct
import subprocess
from pathlib import Path

from .compile import build_replay
from .host import as_array, grid_sizes
from .toolchain import ToolError


def write_launch(path, kernel, buffers, threads_per_threadgroup, threadgroups=None, threads=None, threadgroup_bytes=None,
                 after=None):
    """Records a launch of `kernel`; arguments as those of host.Library.launch.

    `after`: {index: array}, what replay has to find in these buffers at the end. Returns the path.
    """
    sizes = b"".join(bytes(three) for three in grid_sizes(threads_per_threadgroup, threadgroups, threads))
    lengths = [struct.pack("<IIQ", 1, index, size) for index, size in (threadgroup_bytes or {}).items()]
    blocks = [buffer_binding(index, buffer, (after or {}).get(index)) for index, buffer in buffers.items()]
    name = kernel.encode()
    header = b"MSLR" + struct.pack("<II", 1, len(name)) + name + sizes
    Path(path).write_bytes(header + struct.pack("<I", len(lengths) + len(blocks)) + b"".join(lengths + blocks))
    return path


def buffer_binding(index, before, after):
    data = as_array(index, before).tobytes()
    end = struct.pack("<Q", 0) if after is None else struct.pack("<Q", 1) + as_array(index, after).tobytes()
    return struct.pack("<IIQ", 0, index, len(data)) + data + end


def read_launch(path):
    """Kernel, grid, and (kind, index, bytes before or number of them, bytes after) of every binding."""
    file = io.BytesIO(Path(path).read_bytes())
    number = lambda letter: struct.unpack("<" + letter, file.read(struct.calcsize(letter)))[0]  # noqa: E731
    assert file.read(4) == b"MSLR" and number("I") == 1
    name, grid, bindings = file.read(number("I")).decode(), struct.unpack("<9I", file.read(36)), []
    for _ in range(number("I")):
        kind, index, size = number("I"), number("I"), number("Q")
        before = size if kind == 1 else file.read(size)
        after = file.read(size) if kind == 0 and number("Q") else None
        bindings.append((kind, index, before, after))
    assert not file.read()
    return name, grid, bindings


def replay(library, recordings, sanitize=None, schedule=0, seed=1, repeat=1):
    """Runs recorded launches on the kernels of `library` in the replay program; both are built with `sanitize`.

    Returns the finished process: exit status 0 if every launch gave what was recorded and no sanitizer had a report.
    """
    options = ["--schedule", str(schedule), "--seed", str(seed), "--repeat", str(repeat)]
    reports = f"external_symbolizer_path={symbolizer()}"
    environment = {**os.environ, **{f"{name}SAN_OPTIONS": reports for name in ("A", "T", "UB")}}
    return subprocess.run([build_replay(sanitize), library, *recordings, *options], capture_output=True, text=True, env=environment)


def symbolizer():
    """The program that gives a sanitizer's report its file names and lines."""
    found = next(filter(None, map(shutil.which, ("llvm-symbolizer-22", "llvm-symbolizer-19"))), None)
    if not found:
        raise ToolError("error: llvm-symbolizer-22 is missing: apt-get install llvm-22")
    return found
