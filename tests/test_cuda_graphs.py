"""What CUDA promises beyond other devices: graphs, streams, threads, and no waiting."""

import subprocess
import sys
from threading import Thread

import pytest
import torch
from devices import DEVICE
from test_device import ROTATED, numbers, two_sides
from test_format import same_bits

from int4kv import ops

pytestmark = pytest.mark.cuda_only


def step(q, k, v, sides, position):
    ops.quantize_kv(k, v, *sides, position, **ROTATED)
    return ops.attend(q, *sides, 0, position + 1, 0.125, **ROTATED)


@pytest.fixture
def decoded():
    """(q, k, v, the buffers with 3000 tokens)."""
    sides, _ = two_sides(1, 2, 3001)
    ops.quantize_kv(numbers(1, 2, 3000, 64), numbers(1, 2, 3000, 64, seed=1), *sides, 0, **ROTATED)
    q, k, v = numbers(1, 12, 1, 64, seed=2), numbers(1, 2, 1, 64, seed=3), numbers(1, 2, 1, 64, seed=4)
    return q, k, v, sides


def test_a_step_is_captured_and_replayed_on_other_numbers(decoded):
    """Split tokens included: nothing of a step is left to the host."""
    q, k, v, sides = decoded
    step(q, k, v, sides, 3000)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(q, k, v, sides, 3000)
    for seed in (5, 6):
        q.copy_(numbers(1, 12, 1, 64, seed=seed))
        k.copy_(numbers(1, 2, 1, 64, seed=seed + 10))
        graph.replay()
        replayed = out.clone()
        assert same_bits(replayed, step(q, k, v, sides, 3000))


CAPTURE_UNPREPARED = """
import torch, int4kv
from int4kv import ops
x, codes, scales = torch.zeros(1, 1, 1, 64, device="cuda"), torch.zeros(1, 1, 4, 32, dtype=torch.uint8, device="cuda"), \
    torch.zeros(1, 1, 4, 1, dtype=torch.float16, device="cuda")
with torch.cuda.graph(torch.cuda.CUDAGraph()):
    ops.quantize(x, codes, scales, 0)
"""


def test_a_kernel_that_is_not_built_is_named_while_a_graph_is_captured():
    done = subprocess.run([sys.executable, "-c", CAPTURE_UNPREPARED], capture_output=True, text=True)
    assert done.returncode == 1
    assert "int4kv: the CUDA kernel quantize_64 is not built, and cannot be while a graph is captured; call int4kv.ops.prepare()" in done.stderr


def test_ops_run_on_the_current_stream(decoded):
    """Behind a long wait on that stream: on any other they would be done before k is written."""
    q, k, v, sides = decoded
    expected = step(q, k, v, sides, 3000).clone()
    kept, late = k.clone(), torch.cuda.Stream()
    k.fill_(float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(late):
        torch.cuda._sleep(50_000_000)
        k.copy_(kept)
        out = step(q, k, v, sides, 3000)
    late.synchronize()
    assert same_bits(out, expected)


def test_a_thread_whose_first_use_of_cuda_is_an_op(decoded):
    expected, found = step(*decoded, 3000), []
    thread = Thread(target=lambda: found.append(step(*decoded, 3000)))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert same_bits(found[0], expected)


def test_nothing_waits_for_the_gpu(decoded):
    """The host is through with 20 steps while the GPU still sleeps."""
    q, k, v, sides = decoded
    step(q, k, v, sides, 3000)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    done = torch.cuda.Event()
    for _ in range(20):
        step(q, k, v, sides, 3000)
    done.record()
    assert not done.query()
    torch.cuda.synchronize()


def test_kernels_are_described_with_their_origin():
    origin, *kernels = ops.prepare(DEVICE, [128], 3, 8, "absmax")
    assert origin == "source for sm_{}{}".format(*torch.cuda.get_device_capability())
    assert {"attend_simd_1 (K 3, V 8, absmax)", "attend_matrix_128 (K 3, V 8, absmax)", "attend_matrix_128 (K 3, V 8, absmax, decode)", "quantize_128", "dequantize_128", "merge_128"} <= set(kernels)
