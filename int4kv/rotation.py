"""Rotations y = M x applied to centred keys and values before they are rounded, and to queries and outputs when they are read.

A rotation of Hadamard's kind is known by its signs and applied by butterflies: y = H (signs * x) / sqrt(block), in blocks of the largest
power of two that divides head_dim, or of a smaller one. Any other is a matrix. Writing takes M, reading M^-T: q' = M^-T q keeps q.k,
and an output is turned back by the transpose of what reading takes. For an orthonormal M both are M itself.
Randomised Hadamard rotations before quantisation: QuIP# (arXiv 2402.04396), QuaRot (arXiv 2404.00456).
"""

from functools import lru_cache
from typing import NamedTuple

import torch

from .orthonormal import householder_matrix, random_signs, srft_matrix

SIGNED = ("hadamard", "sylvester")
MATRICES = {"srft": srft_matrix, "householder": householder_matrix}
NAMES = (*SIGNED, *MATRICES, "learned")
ORTHONORMAL = 1e-4  # how far M M^T may be from I for M to count as its own inverse transpose: float32 products are 1e-6 off


class Rotation(NamedTuple):
    """write: what quantize takes. read: what attend and dequantize take. Both None, or float32 tensors of one of the shapes of rotate()."""

    write: torch.Tensor | None
    read: torch.Tensor | None


def make_rotation(name, head_dim, device, block=None, matrix=None, channel_lambda=None) -> Rotation:
    """A rotation by name, on a device.

    name: "hadamard" (fixed random signs), "sylvester" (none: SAW-INT4's code, arXiv 2604.19157), both in blocks of `block` channels (None:
        the largest power of two that divides head_dim); "srft" (sign-randomised real FFT: Bergach, arXiv 2605.05699); "householder"
        (head_dim / 2 fixed reflectors); "learned": the matrix given, float32 [heads, head_dim, head_dim], invertible; None.
    channel_lambda: float32 [heads, head_dim], positive. The rotated channels are divided by it when written, multiplied when read.
    Raises ValueError for another name, a block that does not divide head_dim, and "learned" without a matrix; other names ignore it.
    """
    _check_rotation(name, head_dim, block, matrix)
    if name == "learned":
        return _from_matrix(matrix.double(), channel_lambda, device)
    if channel_lambda is not None:
        return _from_matrix(rotation_matrix(name, head_dim, block), channel_lambda, device)
    fixed = _fixed(name, head_dim, block, torch.device(device)) if name else None
    return Rotation(fixed, fixed)


def _check_rotation(name, head_dim, block, matrix):
    if name is not None and name not in NAMES:
        raise ValueError(f"rotation is {name!r}; accepted: {', '.join(map(repr, NAMES))}, None")
    if name == "learned" and matrix is None:
        raise ValueError("matrix is None with rotation 'learned'; accepted: the k_rotation or v_rotation of a calibration that learned one")
    largest = head_dim & -head_dim
    if block is not None and (name not in SIGNED or block < 2 or largest % block):
        raise ValueError(f"block is {block} with rotation {name!r} and head_dim {head_dim}; accepted: None, or with {' and '.join(SIGNED)} "
                         f"a power of two up to {largest}")


@lru_cache(maxsize=None)
def _fixed(name, head_dim, block, device) -> torch.Tensor:
    with torch.inference_mode(False):
        if name not in SIGNED:
            return MATRICES[name](head_dim).float().to(device)
        signs = random_signs(head_dim) if name == "hadamard" else torch.ones(head_dim)
        return (signs if block is None else signs.view(-1, block)).to(device)


def _from_matrix(matrix, channel_lambda, device) -> Rotation:
    """M = diag(1 / lambda) matrix and its inverse transpose, computed in float64, rounded to float32 once."""
    transposed = matrix.transpose(-1, -2)
    orthonormal = (matrix @ transposed - torch.eye(matrix.shape[-1], dtype=matrix.dtype)).abs().max() < ORTHONORMAL
    write, read = matrix, matrix if orthonormal else torch.linalg.inv(matrix).transpose(-1, -2)
    if channel_lambda is not None:
        column = channel_lambda.double().unsqueeze(-1)
        write, read = write / column, read * column
    rounded = write.float().contiguous().to(device)
    return Rotation(rounded, rounded if write is read else read.float().contiguous().to(device))


def rotation_matrix(name, head_dim, block=None) -> torch.Tensor:
    """A fixed rotation as an orthonormal matrix, float64 [head_dim, head_dim]; None is the identity."""
    if name in MATRICES:
        return MATRICES[name](head_dim)
    identity = torch.eye(head_dim, dtype=torch.float64)
    if name is None:
        return identity
    return rotate(identity, _fixed(name, head_dim, block, torch.device("cpu")).double()).T.contiguous()


def hadamard_signs(head_dim: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The fixed signs of the randomised Hadamard rotation, float32 [head_dim] of +1 and -1."""
    return _fixed("hadamard", head_dim, None, torch.device(device))


def hadamard(x: torch.Tensor, block: int | None = None) -> torch.Tensor:
    """H x / sqrt(block) over blocks of the last dimension, butterflies 1, 2, 4, ... apart, as csrc/cpu/kernels/rotate.h does them."""
    head_dim = x.shape[-1]
    block, half = block or head_dim & -head_dim, 1
    norm = 1.0 / torch.tensor(float(block), dtype=x.dtype).sqrt()
    while half < block:
        pairs = x.reshape(*x.shape[:-1], head_dim // (2 * half), 2, half)
        x = torch.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], dim=-2)
        x, half = x.reshape(*x.shape[:-3], head_dim), half * 2
    return x * norm.to(x.device)


def dense(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """matrix x over the last dimension, channel after channel as csrc/cpu/kernels/rotate.h adds them; matrix [(heads,) head_dim, head_dim]."""
    y = torch.zeros_like(x)
    for j in range(x.shape[-1]):
        y = y + matrix[..., None, :, j] * x[..., j : j + 1]
    return y


def _signs_and_block(rotation, head_dim):
    """(signs [head_dim], block) of a rotation of Hadamard's kind; (None, None) of a matrix."""
    if rotation.numel() != head_dim:
        return None, None
    return rotation.reshape(-1), rotation.shape[-1] if rotation.dim() == 2 else None


def rotate(x: torch.Tensor, rotation: torch.Tensor | None) -> torch.Tensor:
    """Rotate float32 x [..., heads, tokens, head_dim].

    rotation: signs [head_dim] of a Hadamard rotation, signs [head_dim / block, block] of one in blocks, or a matrix
    [head_dim, head_dim] or [heads, head_dim, head_dim]; None leaves x as it is.
    """
    if rotation is None:
        return x
    signs, block = _signs_and_block(rotation, x.shape[-1])
    return dense(x, rotation) if signs is None else hadamard(x * signs, block)


def unrotate(x: torch.Tensor, rotation: torch.Tensor | None) -> torch.Tensor:
    """The transpose of rotate: its inverse where the rotation is orthonormal, else that of the other half of a Rotation."""
    if rotation is None:
        return x
    signs, block = _signs_and_block(rotation, x.shape[-1])
    return dense(x, rotation.transpose(-1, -2)) if signs is None else hadamard(x, block) * signs
