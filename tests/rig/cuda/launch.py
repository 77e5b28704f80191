"""Recorded dispatches of Metal kernels, run by the CUDA kernels of the same names."""
import struct
from typing import NamedTuple

import numpy as np

from ..msl.host import Library
from ..msl.recording import read_launch
from .compile import compile_cuda

CONSTANTS = 5  # k_bits, v_bits, codebook, paged, decode
BUFFER, CONSTANT = 0, 2  # kinds of bindings


class Dispatch(NamedTuple):
    """One launch; the buffers' bytes by index, as they were before it and where it wrote."""

    kernel: str
    constants: tuple[int, ...]
    threads: tuple[int, int, int]
    threadgroups: tuple[int, int, int]
    before: dict[int, bytes]
    after: dict[int, bytes]


def read_dispatch(path) -> Dispatch:
    kernel, grid, bindings = read_launch(path)
    given = {index: struct.unpack("<I", data)[0] for kind, index, data, _ in bindings if kind == CONSTANT}
    before = {index: data for kind, index, data, _ in bindings if kind == BUFFER}
    after = {index: data for kind, index, _, data in bindings if kind == BUFFER and data is not None}
    return Dispatch(kernel, tuple(given.get(i, 0) for i in range(CONSTANTS)), grid[:3], grid[3:6], before, after)


def large_block(dispatch: Dispatch) -> tuple[int, tuple[str, ...]]:
    """(simdgroups, options to compile) of a kernel's large blocks, as csrc/gpu/kernel.cpp and csrc/cuda/compile.cpp have them."""
    if dispatch.kernel.startswith("merge"):
        return 16, ("-DINT4KV_MERGE_SIMDGROUPS=16u",)
    simdgroups = 8 if dispatch.kernel.endswith("256") or sum(dispatch.constants[:2]) > 12 else 16
    return simdgroups, (f"-DINT4KV_SIMDGROUPS={simdgroups}u", "-DINT4KV_SHARED_BYTES=232448")


def run(dispatch: Dispatch, source: str | None = None, schedule: int = 0, large: bool = False) -> dict[int, bytes]:
    """The buffers after the CUDA kernel, which `source` may have another program for. Parameters are the last buffer."""
    simdgroups, options = large_block(dispatch) if large else (dispatch.threads[0] // 32, ())
    library = compile_cuda(dispatch.kernel, max(dispatch.before), dispatch.constants, source, options)
    buffers = {index: np.frombuffer(bytearray(data), np.uint8) for index, data in dispatch.before.items()}
    Library(library).launch(dispatch.kernel, buffers, (32 * simdgroups, 1, 1), dispatch.threadgroups, schedule=schedule)
    return {index: buffer.tobytes() for index, buffer in buffers.items()}
