"""How far attend may be from float64 on the same codes, from flat to very peaked scores."""

import time

import pytest
import torch
from devices import DEVICE
from stored_rows import Stored, queries
from test_format import CODEBOOKS

from int4kv import ops, reference

# Of the output's 2-norm, row by row. CPU: 16-bit q and weights, seen up to 2e-4. mps: scores of up to 150 in fp32, seen up to 2e-5.
LIMIT = {"cpu": 5e-4, "mps": 3e-5, "cuda": 2e-3}[DEVICE.type]
KEYS = {"cpu": 4096, "mps": 600, "cuda": 4096}[DEVICE.type]


def relative_error(stored, q, keys):
    scale = q.shape[-1] ** -0.5
    ours = ops.attend(q, *stored.sides, 0, keys, scale, **stored.options).cpu().double()
    sides, options = [x.cpu() for x in stored.sides], {k: v.cpu() if torch.is_tensor(v) else v for k, v in stored.options.items()}
    exact = reference.attend(q.cpu().double(), *sides, 0, keys, scale, dtype=torch.float64, **options)
    return ((ours - exact).norm(dim=-1) / exact.norm(dim=-1)).max()


@pytest.mark.parametrize("spread", [0.25, 1, 4, 16, 40])
@pytest.mark.parametrize("heads, kv_heads, head_dim", [(12, 2, 128), (7, 1, 64), (4, 1, 256)])
def test_spread_of_the_scores(heads, kv_heads, head_dim, spread):
    stored = Stored(1, kv_heads, head_dim, 0, KEYS, KEYS, logits=float(spread), codebook="lloyd")
    assert relative_error(stored, queries(1, heads, 1, head_dim), KEYS) < LIMIT


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_one_peak_before_a_flat_tail(codebook):
    """The weights of the tail are small beside the first token's, and together they count."""
    stored = Stored(1, 1, 128, 0, KEYS, KEYS, logits=0.1, codebook=codebook)
    q = queries(1, 4, 1, 128)
    stored.k[:, :, :1] = q.mean(1, keepdim=True) * 3
    ops.quantize_kv(stored.k[:, :, :1], stored.v[:, :, :1] * 0.01, *stored.sides, 0,
                    k_rotation=stored.signs, v_rotation=stored.signs, codebook=codebook)
    assert relative_error(stored, q, KEYS) < LIMIT


@pytest.mark.cpu_only
def test_peaked_scores_take_no_longer():
    """Weights below 2^-126 are zeros, not subnormal numbers that take a hundred cycles each."""

    def seconds(spread):
        stored = Stored(1, 1, 64, 0, KEYS, KEYS, logits=spread)
        call = lambda: ops.attend(q, *stored.sides, 0, KEYS, 0.125, **stored.options)  # noqa: E731
        q = queries(1, 8, 1, 64)
        return min(timed(call) for _ in range(20))

    def timed(call):
        begin = time.thread_time()
        call()
        return time.thread_time() - begin

    assert seconds(40.0) < 1.5 * seconds(1.0)
