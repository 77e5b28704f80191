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


def run(dispatch: Dispatch, source: str | None = None, schedule: int = 0) -> dict[int, bytes]:
    """The buffers after the CUDA kernel, which `source` may have another program for. Parameters are the last buffer."""
    library = compile_cuda(dispatch.kernel, max(dispatch.before), dispatch.constants, source)
    buffers = {index: np.frombuffer(bytearray(data), np.uint8) for index, data in dispatch.before.items()}
    Library(library).launch(dispatch.kernel, buffers, dispatch.threads, dispatch.threadgroups, schedule=schedule)
    return {index: buffer.tobytes() for index, buffer in buffers.items()}
