"""Runs the kernels of a compiled library on numpy arrays."""
import ctypes
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np

BUFFERS = 31
STATISTICS = ("switches", "collectives", "barriers", "divergent collectives", "exited at barrier", "threadgroup bytes",
              "simdgroup barriers", "launches")


class Launch(ctypes.Structure):
    """MslLaunch of kernel_library.h."""
    _fields_ = [("buffers", ctypes.POINTER(ctypes.c_void_p)), ("threadgroup_bytes", ctypes.POINTER(ctypes.c_size_t)),
                ("threads_per_threadgroup", ctypes.c_uint32 * 3), ("threadgroups", ctypes.c_uint32 * 3),
                ("threads", ctypes.c_uint32 * 3), ("schedule", ctypes.c_int), ("seed", ctypes.c_uint64)]


class KernelError(Exception):
    """The library refused or stopped a launch; its message."""


class Library:
    """One specialisation of a compiled .metal file: `constants` are its function constants, by name or index."""

    def __init__(self, path, constants=None):
        self.library = private_copy(Path(path))
        declare(self.library)
        for constant, value in (constants or {}).items():
            self.set_constant(constant, value)
        check(self.library.msl_start())
        count = self.library.msl_kernel_count()
        self.kernels = {self.library.msl_kernel_name(i).decode(): i for i in range(count)}

    def set_constant(self, constant, value):
        number = self.constant_number(constant)
        data = constant_bytes(value, self.library.msl_constant_size(number))
        check(self.library.msl_set_constant(number, data))

    def constant_number(self, constant):
        for i in range(self.library.msl_constant_count()):
            if constant in (self.library.msl_constant_name(i).decode(), self.library.msl_constant_index(i)):
                return i
        raise KeyError(f"there is no function constant {constant!r}")

    def launch(self, name, buffers, threads_per_threadgroup, threadgroups=None, threadgroup_bytes=None, schedule=0,
               seed=1, threads=None):
        """Runs the kernel `name` to its end.

        `buffers`: {index: C-contiguous array, or bytes}. The grid is given in `threadgroups`, or in `threads` where the
        last ones may be partial. `threadgroup_bytes`: {index: bytes} of [[threadgroup(index)]]. Raises KernelError.
        """
        if name not in self.kernels:
            raise KeyError(f"there is no kernel {name!r}; there are {', '.join(self.kernels)}")
        kept = {index: as_array(index, buffer) for index, buffer in buffers.items()}
        pointers = (ctypes.c_void_p * BUFFERS)(*[kept[i].ctypes.data if i in kept else None for i in range(BUFFERS)])
        lengths = (ctypes.c_size_t * BUFFERS)(*[(threadgroup_bytes or {}).get(i, 0) for i in range(BUFFERS)])
        group, count, grid = grid_sizes(threads_per_threadgroup, threadgroups, threads)
        launch = Launch(pointers, lengths, group, count, grid, schedule, seed)
        check(self.library.msl_launch(self.kernels[name], ctypes.byref(launch)))

    def statistics(self):
        """Counters since the last call, by name."""
        values = (ctypes.c_uint64 * len(STATISTICS))()
        self.library.msl_statistics(values)
        return dict(zip(STATISTICS, values))


def private_copy(path):
    """Function constants are set once per loaded library, and a file is loaded once: so each gets a file of its own."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        return ctypes.CDLL(str(copy))


def declare(library):
    for function in ("msl_kernel_name", "msl_constant_name", "msl_set_constant", "msl_start", "msl_launch"):
        getattr(library, function).restype = ctypes.c_char_p
    library.msl_constant_size.restype = ctypes.c_size_t
    library.msl_buffer_mask.restype = library.msl_threadgroup_mask.restype = ctypes.c_uint32


def check(message):
    if message:
        raise KernelError(message.decode())


def constant_bytes(value, size):
    """A function constant's value in the bytes of its type: a Python or numpy scalar or array."""
    if isinstance(value, float) and size in (2, 4):
        return struct.pack("<f" if size == 4 else "<e", value)
    if isinstance(value, int):
        return int(value).to_bytes(size, "little", signed=value < 0)
    data = np.asarray(value).tobytes()
    if len(data) != size:
        raise ValueError(f"the function constant has {size} bytes, the value given {len(data)}")
    return data


def as_array(index, buffer):
    if isinstance(buffer, (bytes, bytearray)):
        return np.frombuffer(bytearray(buffer), np.uint8)
    if not isinstance(buffer, np.ndarray) or not buffer.flags.c_contiguous:
        raise ValueError(f"buffer {index} must be a C-contiguous array or bytes")
    return buffer


def grid_sizes(threads_per_threadgroup, threadgroups, threads):
    """Threads of a threadgroup, threadgroups and threads, each as three uint32."""
    group = three(threads_per_threadgroup)
    if (threadgroups is None) == (threads is None):
        raise ValueError("give the grid in threadgroups or in threads")
    count = three(threadgroups) if threads is None else [-(-t // g) for t, g in zip(three(threads), group)]
    grid = [c * g for c, g in zip(count, group)] if threads is None else three(threads)
    return [(ctypes.c_uint32 * 3)(*sizes) for sizes in (group, count, grid)]


def three(sizes):
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return sizes + [1] * (3 - len(sizes))
