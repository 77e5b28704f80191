"""Rotations by name, in blocks and as matrices: what they are, and that the ops apply them bit for bit as the reference does."""

import hashlib

import pytest
import torch
from devices import DEVICE, TOLERANCE, on_cpu, on_device
from test_format import buffers, same_bits

from int4kv import ops, reference
from int4kv.orthonormal import householder_matrix, random_signs, srft_matrix
from int4kv.rotation import Rotation, hadamard, make_rotation, rotate, rotation_matrix, unrotate

HEADS, TOKENS = 2, 20
HEAD_DIMS = (32, 64, 96, 128, 160, 256)
FIXED = ("hadamard", "sylvester", "srft", "householder")
ROUNDING = 1e-5  # up to 256 products of values under 4, each rounded at 2^-24


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthonormal(*shape, seed=3):
    return torch.linalg.qr(rows(*shape, seed=seed)).Q.contiguous()


def invertible(heads, head_dim, seed=3):
    """An orthonormal matrix whose rows are scaled by 1/3 to 3."""
    return orthonormal(heads, head_dim, head_dim, seed=seed) * torch.linspace(-1, 1, head_dim).mul(1.1).exp().unsqueeze(-1)


# ---- what they are -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", (*FIXED, None))
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_fixed_rotations_are_orthonormal(name, head_dim):
    matrix = rotation_matrix(name, head_dim)
    assert matrix.dtype == torch.float64
    assert (matrix @ matrix.T - torch.eye(head_dim)).abs().max() < 1e-13  # float64: 256 products rounded at 2^-53


@pytest.mark.cpu_only
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_srft_is_the_half_spectrum_of_the_signed_row(head_dim):
    x = rows(5, head_dim).double()
    spectrum = torch.fft.rfft(x * random_signs(head_dim), norm="ortho")
    inner = torch.view_as_real(spectrum[:, 1:-1]).flatten(-2) * 2**0.5
    expected = torch.cat([spectrum[:, :1].real, inner, spectrum[:, -1:].real], dim=-1)
    assert torch.allclose(x @ srft_matrix(head_dim).T, expected, atol=1e-12)


@pytest.mark.cpu_only
def test_sylvester_is_the_recursion():
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(7):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    assert torch.allclose(rotation_matrix("sylvester", 128), matrix / 128**0.5, atol=1e-15)
    assert torch.equal(rotation_matrix("hadamard", 128), rotation_matrix("sylvester", 128) * random_signs(128))


@pytest.mark.cpu_only
def test_hadamard_in_blocks_is_block_diagonal():
    whole, block = rotation_matrix("hadamard", 128, 32), rotation_matrix("sylvester", 32)
    assert torch.allclose(whole, torch.block_diag(*[block] * 4) * random_signs(128), atol=1e-15)
    x = rows(1, 3, 128)
    assert torch.equal(rotate(x, make_rotation("hadamard", 128, "cpu", block=32).write), hadamard(x * random_signs(128), 32))


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", FIXED)
def test_one_large_channel_is_spread(name):
    """A unit vector has its largest channel cut down to what a random rotation leaves; its energy stays."""
    spread = rotation_matrix(name, 128)[:, [0, 17, 127]].T
    assert torch.allclose(spread.square().sum(-1), torch.ones(3, dtype=torch.float64), atol=1e-13)
    assert spread.abs().max() < {"householder": 1.0}.get(name, (2 / 128) ** 0.5 + 1e-12)


@pytest.mark.cpu_only
def test_fixed_rotations_never_change():
    """Stored codes are read with the same ones years later: signs and reflections to the last bit, the Fourier matrix as float32."""

    def digest(x):
        return hashlib.sha256(x.numpy().tobytes()).hexdigest()[:16]

    assert digest(random_signs(256)) == "93b7e15ecf2dcfd4"
    assert digest(householder_matrix(96)) == "0b1d0dc992d847b4"
    assert digest(srft_matrix(128).float()) == "3b9441597d1d39e1"


# ---- writing and reading -----------------------------------------------------------------------------------------------------------------


def rotations(head_dim):
    """Every kind that an op takes, by what it is."""
    channel_lambda = rows(HEADS, head_dim, seed=9).mul(0.3).exp()
    made = {name: make_rotation(name, head_dim, "cpu") for name in (*FIXED, None)}
    made |= {f"blocks of {block}": make_rotation("hadamard", head_dim, "cpu", block=block) for block in (16, 32)}
    made |= {f"{name} with lambda": make_rotation(name, head_dim, "cpu", channel_lambda=channel_lambda) for name in ("hadamard", None)}
    shared = orthonormal(head_dim, head_dim)
    made["a matrix for all heads"] = Rotation(shared, shared)
    made["a matrix a head"] = make_rotation("learned", head_dim, "cpu", matrix=orthonormal(HEADS, head_dim, head_dim))
    made["invertible"] = make_rotation("learned", head_dim, "cpu", matrix=invertible(HEADS, head_dim), channel_lambda=channel_lambda)
    return made


KINDS = [(head_dim, kind) for head_dim in (64, 96) for kind in rotations(head_dim)]
KINDS += [(head_dim, kind) for head_dim in (32, 128, 256) for kind in ("hadamard", "blocks of 16", "a matrix for all heads", "invertible")]


@pytest.mark.cpu_only
@pytest.mark.parametrize("head_dim, kind", KINDS)
def test_what_is_read_fits_what_was_written(head_dim, kind):
    """q . k survives, and a value comes back: turned by one half of the pair, turned back by the transpose of the other."""
    rotation = rotations(head_dim)[kind]
    q, k = rows(1, HEADS, 4, head_dim), rows(1, HEADS, 4, head_dim, seed=1)
    scores = rotate(q, rotation.read) @ rotate(k, rotation.write).transpose(-1, -2)
    assert (scores - q @ k.transpose(-1, -2)).abs().max() < ROUNDING * head_dim  # products of rows of norm head_dim^1/2
    assert torch.allclose(unrotate(rotate(k, rotation.write), rotation.read), k, atol=10 * ROUNDING)  # an inverse of condition 9


def stored(head_dim, rotation, device):
    """codes and scales of K and V, written by the op on `device` and read back."""
    k, v = rows(1, HEADS, TOKENS, head_dim), rows(1, HEADS, TOKENS, head_dim, seed=1)
    sides = [t.to(device) for _ in range(2) for t in buffers(1, HEADS, TOKENS, head_dim, codebook="lloyd")]
    by = None if rotation is None else rotation.to(device)
    ops.quantize_kv(k.to(device), v.to(device), *sides, 0, k_rotation=by, v_rotation=by, codebook="lloyd")
    return k, v, sides


@pytest.mark.parametrize("head_dim, kind", KINDS)
def test_codes_are_the_references_bits(head_dim, kind):
    write = rotations(head_dim)[kind].write
    k, v, sides = stored(head_dim, write, DEVICE)
    for x, (codes, scales) in ((k, sides[:2]), (v, sides[2:])):
        expected = torch.zeros_like(codes, device="cpu"), torch.zeros_like(scales, device="cpu")
        reference.quantize(x, *expected, 0, rotation=write, codebook="lloyd")
        assert same_bits(codes, expected[0]) and same_bits(scales, expected[1])


@pytest.mark.parametrize("head_dim, kind", KINDS)
@pytest.mark.parametrize("group, queries", [(1, 1), (3, 2)])
def test_attention_turns_q_and_turns_the_output_back(head_dim, kind, group, queries):
    rotation = rotations(head_dim)[kind]
    _, _, sides = stored(head_dim, rotation.write, DEVICE)
    q = rows(1, HEADS * group, queries, head_dim, seed=5)
    options = dict(k_rotation=rotation.read, v_rotation=rotation.read, codebook="lloyd")
    ours = on_cpu(ops.attend(on_device(q), *sides, 0, TOKENS, head_dim**-0.5, **on_device(options)))
    exact = reference.attend(q, *on_cpu(sides), 0, TOKENS, head_dim**-0.5, dtype=torch.float64, **options)
    assert (ours - exact).abs().max() < TOLERANCE[torch.float32] * exact.abs().max()


@pytest.mark.parametrize("kind", rotations(64))
def test_dequantize_turns_back(kind):
    rotation = rotations(64)[kind]
    k, _, sides = stored(64, rotation.write, DEVICE)
    options = dict(rotation=rotation.read, codebook="lloyd")
    back = on_cpu(ops.dequantize(*sides[:2], 0, TOKENS, 64, **on_device(options)))
    assert same_bits(back, reference.dequantize(*on_cpu(sides[:2]), 0, TOKENS, 64, **options))
    assert (back - k).norm() < (0.4 if kind == "invertible" else 0.2) * k.norm()  # four bits leave 0.09, of unequal channels up to 0.3


# ---- what is refused ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.cpu_only
@pytest.mark.parametrize("given, message", [
    (dict(name="random"), "rotation is 'random'; accepted: 'hadamard', 'sylvester', 'srft', 'householder', 'learned', None"),
    (dict(name="learned"), "matrix is None with rotation 'learned'; accepted: the k_rotation or v_rotation of a calibration"),
    (dict(name="hadamard", block=64), "block is 64 with rotation 'hadamard' and head_dim 96; accepted: .* up to 32"),
    (dict(name="hadamard", block=24), "block is 24 "),
    (dict(name="srft", block=32), "block is 32 with rotation 'srft'"),
])
def test_a_rotation_that_cannot_be_made_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        make_rotation(**given, head_dim=96, device="cpu")


@pytest.mark.parametrize("shape", [(64,), (64, 32), (32, 64), (3, 32, 32), (1, 1, 32, 32)])
def test_a_rotation_of_another_shape_is_named(shape):
    codes, scales = torch.zeros(1, HEADS, 4, 16, dtype=torch.uint8), torch.zeros(1, HEADS, 4, 1, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"rotation has shape .*; accepted are \[32\] and .* signs .*, and \[32, 32\] or \[2, 32, 32\]"):
        ops.quantize(*on_device([rows(1, HEADS, 1, 32), codes, scales]), 0, rotation=on_device(torch.zeros(shape)))


def test_a_rotation_is_made_once():
    first, second = (make_rotation("hadamard", 64, DEVICE) for _ in range(2))
    assert first.write is second.write is first.read and first.write.device.type == DEVICE.type
