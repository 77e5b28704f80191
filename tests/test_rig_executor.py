"""The rig's executor: threads, simdgroups, barriers, threadgroup memory, schedules, and the errors that it finds."""
from pathlib import Path

import numpy as np
import pytest

from rig.msl.compile import compile_metal
from rig.msl.host import KernelError, Library

SAMPLES = Path(__file__).parent / "rig" / "msl" / "samples"
FORWARD, BACKWARD, COARSE_RANDOM, FINE_RANDOM = range(4)
ALLOW_DIVERGENCE = 0x100
SCHEDULES = (FORWARD, BACKWARD, COARSE_RANDOM, FINE_RANDOM)

BUILTINS = {  # name: value for the thread at p of a grid of n threads; s: size of its threadgroup, w: of a whole one
    "thread_position_in_grid": lambda p, s, w, n: p,
    "threadgroup_position_in_grid": lambda p, s, w, n: p // w,
    "thread_position_in_threadgroup": lambda p, s, w, n: p % w,
    "threads_per_grid": lambda p, s, w, n: n,
    "threadgroups_per_grid": lambda p, s, w, n: -(-n // w),
    "threads_per_threadgroup": lambda p, s, w, n: s,
    "dispatch_threads_per_threadgroup": lambda p, s, w, n: w,
}
SCALAR_BUILTINS = {
    "thread_index_in_threadgroup": lambda p, s, w, n: index(p, s, w),
    "thread_index_in_simdgroup": lambda p, s, w, n: index(p, s, w) % 32,
    "simdgroup_index_in_threadgroup": lambda p, s, w, n: index(p, s, w) // 32,
    "quadgroup_index_in_threadgroup": lambda p, s, w, n: index(p, s, w) // 4,
    "thread_index_in_quadgroup": lambda p, s, w, n: index(p, s, w) % 4,
    "simdgroups_per_threadgroup": lambda p, s, w, n: -(-s.prod() // 32),
    "dispatch_simdgroups_per_threadgroup": lambda p, s, w, n: -(-w.prod() // 32),
    "threads_per_simdgroup": lambda p, s, w, n: 32,
    "thread_execution_width": lambda p, s, w, n: 32,
}


def index(position, size, whole):
    x, y, z = position % whole
    return x + size[0] * (y + size[1] * z)


def builtin_kernel():
    """Writes every built-in parameter of every thread as three numbers, in the order of the two tables."""
    typed = [("uint3", name) for name in BUILTINS] + [("uint", name) for name in SCALAR_BUILTINS]
    parameters = ", ".join(f"{kind} {name}_ [[{name}]]" for kind, name in typed)
    stores = " ".join(f"mine[{number}] = uint3({name}_);" for number, (_, name) in enumerate(typed))
    return f"""
#include <metal_stdlib>
using namespace metal;
kernel void builtins(device packed_uint3* out, {parameters}) {{
  const uint3 at = thread_position_in_grid_, grid = threads_per_grid_;
  device packed_uint3* mine = out + ((at.z * grid.y + at.y) * grid.x + at.x) * {len(typed)};
  {stores}
}}
"""


KERNELS = """
#include <metal_stdlib>
using namespace metal;
#define THREAD uint i [[thread_index_in_threadgroup]], uint group [[threadgroup_position_in_grid]], \\
               uint lane [[thread_index_in_simdgroup]], uint3 size [[threads_per_threadgroup]]

kernel void order(device atomic_uint* counter, device uint* turn, THREAD) {
  turn[group * size.x + i] = atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}
kernel void order_after_barrier(device atomic_uint* counter, device uint* turn, THREAD) {
  threadgroup_barrier(mem_flags::mem_none);
  turn[i] = atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}
kernel void unwritten(device uint* out, threadgroup uint* dynamic, THREAD) {
  threadgroup uint variable[4];
  out[group * 2] = dynamic[i + 3];
  out[group * 2 + 1] = variable[i + 3];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  dynamic[i + 3] = variable[i + 3] = 7;
}
kernel void unrolled_barriers(device float* out, device const uint* rounds, THREAD) {
  threadgroup float shared[64];
  shared[i] = float(i);
  for (uint round = 0; round < rounds[0]; round++) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const float x = shared[(i + 1) % 64];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    shared[i] = x;
  }
  out[i] = shared[i];
}

kernel void some_threads(device float* out, THREAD) {
  if (i < 31) threadgroup_barrier(mem_flags::mem_none);
  out[i] = 1;
}
kernel void two_places(device float* out, THREAD) {
  if (i < 40) threadgroup_barrier(mem_flags::mem_none);
  else threadgroup_barrier(mem_flags::mem_none);
}
kernel void divergent_sum(device float* out, THREAD) {
  if (lane & 1) out[i] = simd_sum(1.0f);
  else out[i] = -simd_sum(1.0f);
}
kernel void divergent_sums(device float* out, THREAD) {
  float count = 0;
  for (uint k = 0; k < lane / 8; k++) count += simd_sum(1.0f);
  out[i] = count;
}
kernel void divergent_barrier(device float* out, THREAD) {
  if (lane < 5) simdgroup_barrier(mem_flags::mem_none);
  else threadgroup_barrier(mem_flags::mem_none);
}
kernel void part_matrix(device float* out, THREAD) {
  simdgroup_float8x8 m = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
  simdgroup_store(m, out);
}
kernel void quads_apart(device float* out, THREAD) {
  if (i / 4 % 2) out[i] = quad_sum(float(i));
}
kernel void large(device float* out, THREAD) {
  threadgroup float shared[9000];
  out[i] = shared[i] = 1;
}
kernel void deep(device float* out, THREAD) {
  volatile float local[40000];
  for (uint k = 0; k < 40000; k++) local[k] = 1;
  out[i] = local[i];
}
kernel void constant_needed(constant float& x, device float* out, THREAD) {
  out[i] = x;
}
"""


def compiled(folder, source):
    (folder / "kernels.metal").write_text(source)
    return compile_metal(folder / "kernels.metal", folder / "kernels.so")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return Library(compiled(tmp_path_factory.mktemp("kernels"), KERNELS))


@pytest.fixture(scope="module")
def barriers(tmp_path_factory):
    return Library(compile_metal(SAMPLES / "barriers.metal", tmp_path_factory.mktemp("barriers") / "barriers.so"))


def line_of(words):
    return next(number for number, line in enumerate(KERNELS.split("\n"), 1) if words in line)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_built_in_parameters(tmp_path, schedule):
    whole, grid = np.array([5, 4, 2]), np.array([13, 9, 3])  # partial threadgroups on every axis
    values = (BUILTINS | SCALAR_BUILTINS).items()
    out = np.zeros((*grid[::-1], len(values), 3), np.uint32)
    Library(compiled(tmp_path, builtin_kernel())).launch("builtins", {0: out}, whole, threads=grid, schedule=schedule)
    for z, y, x in np.ndindex(out.shape[:3]):
        position = np.array([x, y, z])
        size = np.minimum(whole, grid - position // whole * whole)
        for found, (name, value) in zip(out[z, y, x], values):
            assert np.all(found == value(position, size, whole, grid)), (name, position)


def turns(library, kernel, threads, groups, schedule, seed=1):
    turn = np.zeros(threads * groups, np.uint32)
    library.launch(kernel, {0: np.zeros(1, np.uint32), 1: turn}, threads, groups, schedule=schedule, seed=seed)
    return turn.tolist()


def test_order_of_threads(library):
    counting = list(range(96))
    assert turns(library, "order", 96, 1, FORWARD) == counting
    assert turns(library, "order", 96, 1, BACKWARD) == counting[::-1]
    for schedule in (COARSE_RANDOM, FINE_RANDOM):
        shuffled = turns(library, "order", 96, 1, schedule)
        assert sorted(shuffled) == counting and shuffled not in (counting, counting[::-1])
        assert shuffled == turns(library, "order", 96, 1, schedule) != turns(library, "order", 96, 1, schedule, seed=2)


def test_order_of_threadgroups(library):
    counting = list(range(30))
    assert turns(library, "order", 1, 30, FORWARD) == counting
    assert turns(library, "order", 1, 30, BACKWARD) == counting[::-1]
    shuffled = turns(library, "order", 1, 30, COARSE_RANDOM)
    assert sorted(shuffled) == counting and shuffled not in (counting, counting[::-1])


def test_coarse_random_stays_in_a_simdgroup_and_fine_random_does_not(library):
    def spread(schedule):
        return np.ptp(np.reshape(turns(library, "order_after_barrier", 96, 1, schedule), (3, 32)), axis=1)

    assert (spread(COARSE_RANDOM) == 31).all() and (spread(FINE_RANDOM) > 31).all()


def launch_rows(barriers, kernel, schedule, seed=1):
    rows = np.random.default_rng(5).standard_normal((4, 128)).astype(np.float32)
    out = np.zeros_like(rows)
    barriers.launch(kernel, {0: rows, 1: out}, 128, 4, schedule=schedule, seed=seed)
    return rows, out


def test_a_right_kernel_gives_the_same_under_every_schedule(barriers):
    for schedule in SCHEDULES:
        for seed in range(5):
            rows, out = launch_rows(barriers, "reverse", schedule, seed)
            assert np.array_equal(out, (rows[:, ::-1] + 1)[:, np.arange(128) ^ 64])
            rows, out = launch_rows(barriers, "neighbours", schedule, seed)
            assert np.array_equal(out, rows[:, np.arange(128) ^ 1])


@pytest.mark.parametrize("kernel", ("reverse", "neighbours"))
def test_a_missing_barrier_changes_results(barriers, kernel):
    _, right = launch_rows(barriers, kernel, FORWARD)
    for schedule in SCHEDULES:
        _, wrong = launch_rows(barriers, f"{kernel}_without_barrier", schedule)
        assert not np.array_equal(wrong, right)


def test_threadgroup_memory_starts_unwritten_in_every_threadgroup(library):
    out = np.zeros(6, np.uint32)
    library.launch("unwritten", {0: out}, 1, 3, threadgroup_bytes={0: 16})
    assert (out == 0xffffffff).all()
    assert library.statistics()["threadgroup bytes"] == 32


def test_one_barrier_in_the_source_is_one_barrier_however_it_was_compiled(library):
    for rounds in range(1, 12):
        out = np.zeros(64, np.float32)
        library.launch("unrolled_barriers", {0: out, 1: np.uint32([rounds])}, 64, 1)
        assert np.array_equal(out, (np.arange(64) + rounds) % 64)


def test_divergence_can_be_allowed(library):
    out = np.zeros(64, np.float32)
    library.launch("divergent_sum", {0: out}, 64, 1, schedule=ALLOW_DIVERGENCE)
    assert np.array_equal(out, np.arange(64) % 2 * 32 - 16)
    library.launch("divergent_sums", {0: out}, 64, 1, schedule=ALLOW_DIVERGENCE)
    assert np.array_equal(out, np.tile(np.repeat([0, 24, 24 + 16, 24 + 16 + 8], 8), 2))
    assert library.statistics()["divergent collectives"] > 0


def test_quads_do_not_wait_for_each_other(library):
    out = np.zeros(32, np.float32)
    library.launch("quads_apart", {0: out}, 32, 1)
    sums = np.arange(32).reshape(8, 4).sum(1)
    assert np.array_equal(out, np.repeat(np.where(np.arange(8) % 2, sums, 0), 4))


ERRORS = {  # kernel: threads, the source line at fault, the message
    "some_threads": (32, "if (i < 31)", r"threadgroup_barrier at \S*kernels.metal:LINE reached by 31 of 32 threads of "
                                        r"threadgroup \([01], 0, 0\); 1 have returned"),
    "two_places": (64, "if (i < 40)", r"reached by 40 of 64 threads .*; thread \d+ waits in threadgroup_barrier at "),
    "divergent_sum": (32, "if (lane & 1)", r"simd_sum at \S*kernels.metal:LINE reached by 16 of 32 threads"),
    "divergent_barrier": (32, "if (lane < 5)", r"simdgroup_barrier at \S*:LINE reached by 5 of 32 .*; "
                                               r"thread 5 waits in threadgroup_barrier"),
    "part_matrix": (20, "simdgroup_store", r"simdgroup_store at \S*:LINE reached by 20 of 32 .*; it needs all of them"),
    "large": (32, "9000", r"large: threadgroup memory 36000 > 32768"),
    "deep": (32, "", r"deep: thread \d+ has overrun its stack"),
    "constant_needed": (32, "", r"constant_needed: buffer 0 is not bound"),
    "order": (1025, "", r"order: 1025 threads per threadgroup; 1 to 1024 are possible"),
    "unwritten": (1, "", r"unwritten: no length for \[\[threadgroup\(0\)\]\]"),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kernel", ERRORS)
def test_errors(library, kernel, schedule):
    threads, words, message = ERRORS[kernel]
    buffers = {} if kernel == "constant_needed" else {0: np.zeros(2000, np.float32)}
    with pytest.raises(KernelError, match=message.replace("LINE", str(line_of(words)))):
        library.launch(kernel, buffers, threads, 2, schedule=schedule)
    assert sorted(turns(library, "order", 96, 1, schedule)) == list(range(96))  # the library is still good


def test_dynamic_and_static_threadgroup_memory_share_the_limit(library):
    with pytest.raises(KernelError, match="threadgroup memory 32784 > 32768"):
        library.launch("unwritten", {0: np.zeros(2, np.uint32)}, 1, 1, threadgroup_bytes={0: 32768})
    with pytest.raises(KernelError, match="threadgroup memory 32784 > 32768"):
        library.launch("unwritten", {0: np.zeros(2, np.uint32)}, 1, 1, threadgroup_bytes={0: 32784})


def test_function_constants(tmp_path):
    source = """
constant int n [[function_constant(0)]];
constant float x [[function_constant(3)]];
constant int quotient = 12 / n;
constant float y = is_function_constant_defined(x) ? x : 0.5f;
kernel void k(device float* out) { out[0] = n; out[1] = quotient; out[2] = y; }
"""
    path = compiled(tmp_path, source)
    out = np.zeros(3, np.float32)
    Library(path, {"n": 4, 3: 2.5}).launch("k", {0: out}, 1, 1)
    assert out.tolist() == [4, 3, 2.5]
    Library(path, {0: 6}).launch("k", {0: out}, 1, 1)
    assert out.tolist() == [6, 2, 0.5]
    with pytest.raises(KernelError, match=r"function constant n \(index 0\) has no value"):
        Library(path)
