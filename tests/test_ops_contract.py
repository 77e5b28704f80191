"""What torch expects of an op: schema, fake tensors, dynamic shapes, compilation without a graph per token."""

import pytest
import torch
import torch._dynamo.testing
from devices import DEVICE
from stored_rows import Stored, queries
from test_format import buffers, same_bits

from int4kv import ops
from int4kv.rotation import hadamard_signs

# torch knows CPU, CUDA and XPU in its check of autograd registration, and raises for other devices.
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic") + ("test_autograd_registration",) * (DEVICE.type == "cpu")


def opcheck(op, args, options=None):
    torch.library.opcheck(op, args, options, test_utils=CHECKS)


def test_opcheck_quantize():
    signs = hadamard_signs(64, DEVICE)
    x, centre = queries(1, 2, 3, 64), torch.zeros(1, 2, 64, device=DEVICE)
    codes, scales, recent = buffers(1, 2, 8, 64, recent=4)
    opcheck(ops.quantize.default, (x, codes, scales, 2), dict(centre=centre, rotation=signs, recent=recent))
    opcheck(ops.quantize.default, (x, codes, scales, 0))


def test_opcheck_quantize_kv():
    signs = hadamard_signs(64, DEVICE)
    sides = buffers(1, 2, 8, 64, recent=4) + buffers(1, 2, 8, 64, recent=4)
    opcheck(
        torch.ops.int4kv.quantize_kv.default, (queries(1, 2, 3, 64), queries(1, 2, 3, 64), sides[0], sides[1], sides[3], sides[4], 2),
        dict(k_rotation=signs, v_rotation=signs, k_recent=sides[2], v_recent=sides[5]))


@pytest.mark.parametrize("count", [1, 5])
def test_opcheck_attend(count):
    stored = Stored(1, 2, 64, 0, 20, 24, rows=8)
    mask = torch.ones(1, 1, count, 20, dtype=torch.bool, device=DEVICE)
    opcheck(torch.ops.int4kv.attend.default, (queries(1, 4, count, 64), *stored.sides, 0, 20, 0.125),
                          stored.options | dict(recent_window=4, mask=mask))


def test_opcheck_dequantize():
    stored = Stored(1, 2, 64, 0, 20, 24)
    opcheck(ops.dequantize.default, (*stored.sides[:2], 0, 20, 64), dict(rotation=stored.signs, dtype=torch.bfloat16))


def step(q, k, v, sides, signs, position):
    ops.quantize_kv(k, v, *sides, position, k_rotation=signs, v_rotation=signs)
    return ops.attend(q, *sides, 0, position + 1, 0.125, k_rotation=signs, v_rotation=signs)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.cpu_only)])
def test_one_compiled_graph_serves_every_token(backend):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    signs = hadamard_signs(64, DEVICE)
    ours, theirs = (tuple(buffers(1, 2, 16, 64) + buffers(1, 2, 16, 64)) for _ in range(2))
    for position in range(10):
        q, k, v = queries(1, 4, 1, 64, seed=position), queries(1, 2, 1, 64, seed=position + 50), queries(1, 2, 1, 64, seed=position + 99)
        assert torch.equal(compiled(q, k, v, ours, signs, position), step(q, k, v, theirs, signs, position))
    assert counter.frame_count <= 3, f"{counter.frame_count} graphs for 10 tokens"  # position 0, 1 and the symbolic rest
    assert all(same_bits(a, b) for a, b in zip(ours, theirs))


def test_no_silent_gradient():
    stored = Stored(1, 2, 64, 0, 8, 8)
    out = ops.attend(queries(1, 4, 1, 64).requires_grad_(), *stored.sides, 0, 8, 1.0)
    with pytest.raises(RuntimeError, match="int4kv|does not require grad|not implemented"):
        out.sum().backward()
