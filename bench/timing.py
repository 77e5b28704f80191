"""How every script here times. Import it before torch: it pins OpenMP's threads, which otherwise may wake on the caller's core.

    warm-up    every contender in turn, at least twice, until WARM_UP_S of wall-clock time have passed
    round 1    a  b  c      one sample of each; the caches are flushed, or the inputs cycled past them, before every call
    round 2    c  b  a      the order reversed every other round
    ...                     a contender SLOW times slower than the second best in the warm-up takes part in FEW rounds

A sample is one cold call, in milliseconds, as a decode step would make it: the step reads all weights between two calls of a
layer's attention, so nothing of the cache is left in L2 or L3.

    cpu    the flush reads FLUSH_FACTOR times the last-level cache in all threads, then the call is timed
    cuda   a CUDA graph of calls on copies of the inputs, CYCLE_BYTES in all, between two events; the sample is their mean. Before the
           first event the GPU waits LAUNCH_CYCLES: an idle one would begin before the graph has been handed over, and wait in between
    mps    the same copies without a graph, from synchronise to synchronise
"""

import os
import statistics
import sys
import time
from pathlib import Path

if "torch" not in sys.modules:
    os.environ.setdefault("OMP_PROC_BIND", "true")

import torch

ROUNDS, FEW, SLOW = 25, 5, 4.0
WARM_UP_S = 0.3
FLUSH_FACTOR, LEAST_FLUSH = 3, 96 * 2**20
CYCLE_BYTES, MOST_COPIES = 192 * 2**20, 512
LAUNCH_CYCLES = 1_000_000
RERUNS = 2
STALL_MS = 6.0  # a worker thread woken on the caller's core costs 8 ms, or 16, on a virtual machine


def spread(times: list[float]) -> dict:
    """Median, 10th and 90th percentile (nearest rank) and count of samples."""
    ordered = sorted(times)
    last = len(ordered) - 1
    return dict(median=statistics.median(ordered), p10=ordered[round(0.1 * last)], p90=ordered[round(0.9 * last)], rounds=len(ordered))


def last_level_cache() -> int:
    """Bytes of the largest cache of this CPU; 32 MiB where the system does not say."""
    units = {"K": 2**10, "M": 2**20}
    found = [file.read_text().strip() for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in found), default=32 * 2**20)


class CpuClock:
    """One set of inputs, and the caches flushed by reading: a writing flush would have its write-back timed with the next call."""

    def __init__(self):
        self.buffer = torch.ones(max(FLUSH_FACTOR * last_level_cache(), LEAST_FLUSH) // 8, dtype=torch.int64)

    def copies(self, nbytes: int) -> int:
        return 1

    def flush(self) -> None:
        self.buffer.sum()

    def timer(self, calls: list):
        """A function that makes one cold call and returns its milliseconds."""
        (call,) = calls

        def sample():
            self.flush()
            begin = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - begin)

        return sample


class CycledClock:
    """So many copies of the inputs that each call finds its own gone from the caches."""

    def copies(self, nbytes: int) -> int:
        return min(max(CYCLE_BYTES // max(nbytes, 1) + 1, 2), MOST_COPIES)


class MpsClock(CycledClock):
    def timer(self, calls: list):
        """A function that calls all copies and returns the mean milliseconds of one."""
        return in_a_row(calls, "mps")


class CudaClock(CycledClock):
    def timer(self, calls: list):
        """A function that replays a graph of all copies and returns the mean milliseconds of one."""
        graph = self.graph(calls)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def sample():
            torch.cuda._sleep(LAUNCH_CYCLES)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / len(calls)

        return sample

    def graph(self, calls: list):
        """All calls captured; outputs share the graph's pool, so each call is made as in a model."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            calls[0]()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph


def in_a_row(calls: list, device: str):
    """A function that makes all calls, from synchronise to synchronise, and returns the mean milliseconds of one: hot on the CPU."""

    def sample():
        synchronize(device)
        begin = time.perf_counter()
        for call in calls:
            call()
        synchronize(device)
        return 1e3 * (time.perf_counter() - begin) / len(calls)

    return sample


def clock_for(device: str):
    """The clock of a device type. Raises ValueError for one that there is no clock for."""
    clocks = {"cpu": CpuClock, "mps": MpsClock, "cuda": CudaClock}
    if device not in clocks:
        raise ValueError(f"device is {device!r}; accepted: {', '.join(clocks)}")
    return clocks[device]()


def synchronize(device: str) -> None:
    """Wait for what was queued; nothing to wait for on the CPU."""
    if device != "cpu":
        getattr(torch, device).synchronize()


def warm_up(timers: dict, seconds: float = WARM_UP_S) -> dict[str, float]:
    """Each contender's best milliseconds while the machine wakes up: caches, clocks, threads, allocator."""
    best, begin, passes = dict.fromkeys(timers, float("inf")), time.perf_counter(), 0
    while passes < 2 or time.perf_counter() - begin < seconds:
        for name, sample in timers.items():
            if passes < 2 or best[name] <= slow_from(best):
                best[name] = min(best[name], sample())
        passes += 1
    return best


def slow_from(best: dict[str, float]) -> float:
    """Milliseconds from which a contender has lost: SLOW times the second best, so that the best two, which make a ratio, never have."""
    return SLOW * sorted(best.values())[:2][-1]


def rounds_for(best: dict[str, float], rounds: int, few: int = FEW) -> dict[str, int]:
    """Rounds of each contender: all, or a few for one that has lost already."""
    return {name: rounds if ms <= slow_from(best) else min(few, rounds) for name, ms in best.items()}


def schedule(rounds: dict[str, int]) -> list[list[str]]:
    """Who runs in each round and in which order: contenders with fewer rounds are spread evenly over all of them."""
    total, plan = max(rounds.values()), []
    for i in range(total):
        names = [name for name, own in rounds.items() if (i + 1) * own // total > i * own // total]
        plan.append(names if i % 2 == 0 else names[::-1])
    return plan


def interleave(timers: dict, rounds: dict[str, int]) -> dict[str, list[float]]:
    """Milliseconds of every sample, the contenders taking turns."""
    times = {name: [] for name in timers}
    for names in schedule(rounds):
        for name in names:
            times[name].append(timers[name]())
    return times


def stalled(times: list[float]) -> bool:
    """True when more than a fifth of the samples of a short call waited for the scheduler."""
    best = min(times)
    return best < STALL_MS and 5 * sum(t > best + STALL_MS for t in times) > len(times)


def measure(timers: dict, rounds: int = ROUNDS, warm_up_s: float = WARM_UP_S) -> dict[str, dict]:
    """Spread and samples of every contender, ms. A measurement with stalls is made again, at most RERUNS times; what is left is marked."""
    planned = rounds_for(warm_up(timers, warm_up_s), rounds)
    for again in range(RERUNS + 1):
        times = interleave(timers, planned)
        if not any(map(stalled, times.values())):
            break
    return {name: spread(t) | dict(reruns=again, stalled=stalled(t), samples=t) for name, t in times.items()}


def best_seconds(device: str, call, times: int = 4) -> float:
    """The shortest wall-clock time of a call that runs long enough for a synchronisation not to matter."""
    best = float("inf")
    for _ in range(times):
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return best


def paired_ratio(theirs: list[float], ours: list[float]) -> dict | None:
    """Spread of their samples over ours, round by round: what slows down a whole round drops out. None where the rounds differ."""
    return spread([a / b for a, b in zip(theirs, ours)]) if len(theirs) == len(ours) else None


def read_bandwidth(device: str, nbytes: int | None = None) -> float:
    """GB/s of reading a buffer far beyond the caches, the best of some of torch's reductions: a lower bound of what the memory gives."""
    buffer = torch.ones((nbytes or (2**33 if device == "cuda" else 2**29)) // 8, dtype=torch.int64, device=device)
    floats = buffer.view(torch.float32)
    calls = (buffer.sum, buffer.max, floats.sum, floats.max)
    return buffer.nbytes / min(best_seconds(device, call) for call in calls) / 1e9


def arithmetic_rate(device: str, dtype: torch.dtype = torch.float32) -> float:
    """GFLOP/s of a square matrix product: what the arithmetic units give to code as good as a BLAS."""
    size = 8192 if device == "cuda" else 1536
    a = torch.ones(size, size, dtype=dtype, device=device)
    return 2 * size**3 / best_seconds(device, lambda: torch.mm(a, a), times=10) / 1e9
