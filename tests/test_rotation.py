"""Rotations other than the Hadamard one: an orthonormal matrix, one for all heads or one per KV head."""

import pytest
import torch
from devices import DEVICE, on_cpu, on_device

from int4kv import ops, reference
from int4kv.rotation import rotate, unrotate

HEADS, TOKENS = 2, 20


def orthonormal(*shape, seed=3):
    return torch.linalg.qr(torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).Q.contiguous()


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MATRICES = [(head_dim, shape) for head_dim in (32, 64, 96, 128, 256) for shape in ((head_dim, head_dim), (HEADS, head_dim, head_dim))]


def stored(head_dim, rotation, device):
    """codes and scales of K and V, written by the op on `device` and read back."""
    k, v = rows(1, HEADS, TOKENS, head_dim), rows(1, HEADS, TOKENS, head_dim, seed=1)
    sides = [torch.zeros(1, HEADS, TOKENS, n, dtype=t).to(device) for n, t in ((head_dim // 2, torch.uint8), (1, torch.float16))] * 2
    sides = [t.clone() for t in sides]
    by = rotation.to(device)
    ops.quantize_kv(k.to(device), v.to(device), *sides, 0, k_rotation=by, v_rotation=by)
    return k, v, sides


@pytest.mark.parametrize("head_dim, shape", MATRICES)
def test_codes_are_the_references_bits(head_dim, shape):
    rotation = orthonormal(*shape)
    k, v, sides = stored(head_dim, rotation, DEVICE)
    for x, (codes, scales) in ((k, sides[:2]), (v, sides[2:])):
        expected = torch.zeros_like(codes, device="cpu"), torch.zeros_like(scales, device="cpu")
        reference.quantize(x, *expected, 0, rotation=rotation)
        assert torch.equal(on_cpu(codes), expected[0]) and torch.equal(on_cpu(scales), expected[1])


@pytest.mark.parametrize("head_dim, shape", MATRICES)
@pytest.mark.parametrize("group, queries", [(1, 1), (3, 2)])
def test_attention_turns_q_and_turns_the_output_back(head_dim, shape, group, queries):
    rotation = orthonormal(*shape)
    _, _, sides = stored(head_dim, rotation, DEVICE)
    q = rows(1, HEADS * group, queries, head_dim, seed=5)
    by = dict(k_rotation=rotation, v_rotation=rotation)
    ours = on_cpu(ops.attend(on_device(q), *sides, 0, TOKENS, head_dim**-0.5, **on_device(by)))
    exact = reference.attend(q, *on_cpu(sides), 0, TOKENS, head_dim**-0.5, dtype=torch.float64, **by)
    assert (ours - exact).abs().max() < 1e-5 * exact.abs().max()  # as test_attend's fp32


def test_dequantize_turns_back():
    rotation = orthonormal(HEADS, 64, 64)
    _, _, sides = stored(64, rotation, DEVICE)
    back = on_cpu(ops.dequantize(*sides[:2], 0, TOKENS, 64, rotation=on_device(rotation)))
    assert torch.equal(back, reference.dequantize(*on_cpu(sides[:2]), 0, TOKENS, 64, rotation=rotation))


def test_the_inverse_of_a_rotation():
    x, rotation = rows(1, HEADS, 4, 64), orthonormal(HEADS, 64, 64)
    assert torch.allclose(unrotate(rotate(x, rotation), rotation), x, atol=1e-5)  # 64 products rounded at 2^-24, twice


@pytest.mark.parametrize("shape", [(64,), (64, 32), (32, 64), (3, 32, 32), (1, 1, 32, 32)])
def test_a_rotation_of_another_shape_is_named(shape):
    codes, scales = torch.zeros(1, HEADS, 4, 16, dtype=torch.uint8), torch.zeros(1, HEADS, 4, 1, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"rotation has shape .*; accepted are \[32\], the signs .* \[32, 32\] or \[2, 32, 32\]"):
        ops.quantize(*on_device([rows(1, HEADS, 1, 32), codes, scales]), 0, rotation=on_device(torch.zeros(shape)))
