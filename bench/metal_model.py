"""From instructions to a share of the memory bus: a model of Apple's GPUs, nothing in it was measured by this project.

A core issues 128 lane-instructions a cycle. A kernel that needs no more of them for a byte than the machine can issue is
expected to run at the speed of the bus; one that needs n times as many, at 1/n of it.
"""

from typing import NamedTuple

LANES = 128


class Machine(NamedTuple):
    name: str
    cores: int
    gigahertz: float
    gigabytes: float  # of the memory bus, a second
    source: str

    def affordable(self):
        """Lane-instructions for a byte of the bus."""
        return self.cores * LANES * self.gigahertz / self.gigabytes


APPLE = "Apple's specifications"
MEASURED = "metal-benchmarks (P. Turner)"
MACHINES = (
    Machine("M1", 8, 1.278, 68.25, f"cores: {APPLE}; bus: 128 bits of LPDDR4X-4266; clock: {MEASURED}"),
    Machine("M2 Pro", 19, 1.398, 200.0, f"cores and bus: {APPLE}; clock: {MEASURED}"),
    Machine("M3 Max", 40, 1.398, 400.0, f"cores and bus: {APPLE}; clock: an estimate, databases of GPUs list it"),
    Machine("M4 Max", 40, 1.578, 546.0, f"cores and bus: {APPLE}; clock: an estimate, databases of GPUs list 1.5 to 1.7"),
)

# Issue slots of a lane, optimistic and pessimistic.
SLOTS = {
    "float": (1, 1),
    "half": (1, 1),
    "integer": (1, 1),
    "shift": (1, 4),
    "multiply": (1, 4),
    "divide": (8, 32),
    "wide integer": (1, 4),
    "wide shift": (1, 4),
    "wide multiply": (1, 16),
    "wide divide": (16, 64),
    "compare": (0, 1),
    "select": (1, 1),
    "half conversion": (0, 1),
    "number conversion": (1, 4),
    "width": (0, 1),
    "special": (1, 4),
    "shuffle": (1, 2),
    "matrix multiply": (16, 16 * LANES / 101.7),
    "address": (0, 4),
    "branch": (1, 1),
    "barrier": (1, 1),
    "constant load": (0, 1),
    "device load": (1, 1),
    "device store": (1, 1),
    "threadgroup load": (1, 1),
    "threadgroup store": (1, 1),
}
BYTE_SLOTS = (0, 2)  # for every byte that a lane moves: on-core bandwidth is 64 bytes a cycle

ASSUMPTIONS = (
    "Both: one instruction for each lane and cycle; integer and float work never overlap; `and` with `or` is two"
    " instructions; a half2 operation is two; latency is hidden; every simdgroup has work; each byte of codes crosses the"
    " bus once.",
    "Optimistic: conversions between half and float and between widths of integers are free as operands, a comparison is"
    " part of its select, addresses are part of their load, nothing but a matrix multiply takes more than a slot: 8 * 8 * 8"
    " FMAs over 32 lanes, 16. Maxima do not move, so that nothing is rescaled.",
    f"Pessimistic: rates of Apple 7 and 8 as {MEASURED} publishes them, as if they held for all and nothing ran beside:"
    " shifts, 32-bit products, 64-bit sums and exp2 at a quarter, 64-bit products at a sixteenth, shuffles at half the rate,"
    " 101.7 of 128 FMAs in a matrix multiply, 64 bytes a cycle and core to or from memory of any kind; every tile is"
    " rescaled. Slots of divisions are a guess; the hot loops hold none.",
)

# query heads, KV heads, head_dim of a model, and the kernel's use that serves them.
LAYOUTS = {
    (12, 2, 128): "attend_matrix_128",
    (28, 4, 128): "attend_matrix_128",
    (14, 2, 64): "attend_matrix_64",
    (4, 1, 256): "attend_matrix_256",
    (8, 4, 256): "attend_simd_2_256",
}


def slots(counts, moved_bytes, reading):
    """Issue slots of a Counter of classes and of the bytes moved; `reading` 0 is optimistic, 1 pessimistic."""
    return sum(number * SLOTS[name][reading] for name, number in counts.items()) + BYTE_SLOTS[reading] * moved_bytes


def bus_share(machine, slots_per_code, bytes_per_code):
    """The share of the bus, at most 1, that a kernel is expected to reach."""
    return min(1.0, machine.affordable() * bytes_per_code / slots_per_code)
