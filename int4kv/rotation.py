"""The randomised Hadamard rotation y = H (signs * x) / sqrt(n): its signs, and the rotation itself in plain PyTorch.

n is the largest power of two that divides head_dim; other head_dims are rotated in blocks of n.
Randomised Hadamard rotations before quantisation: QuIP# (arXiv 2402.04396), QuaRot (arXiv 2404.00456).
"""

from functools import lru_cache

import torch

_MASK = 2**64 - 1


def _splitmix64(state: int) -> int:
    """One step of Steele, Lea and Flood's SplitMix64 (OOPSLA 2014): the signs are part of the format, not of torch's RNG."""
    z = (state * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@lru_cache(maxsize=None)
def hadamard_signs(head_dim: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The fixed signs of the rotation, float32 [head_dim] of +1 and -1."""
    signs = [1.0 - 2.0 * (_splitmix64(c + 1) & 1) for c in range(head_dim)]
    with torch.inference_mode(False):
        return torch.tensor(signs, device=device)


def hadamard(x: torch.Tensor) -> torch.Tensor:
    """H x / sqrt(n) over the last dimension, butterflies 1, 2, 4, ... apart, as csrc/cpu/rotation.cpp does them."""
    head_dim = x.shape[-1]
    block, half = head_dim & -head_dim, 1
    norm = 1.0 / torch.tensor(float(block)).sqrt()
    while half < block:
        pairs = x.reshape(*x.shape[:-1], head_dim // (2 * half), 2, half)
        x = torch.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], dim=-2)
        x, half = x.reshape(*x.shape[:-3], head_dim), half * 2
    return x * norm.to(x.device)


def dense(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """matrix x over the last dimension, channel after channel as csrc/cpu/rotation.cpp adds them; matrix [(heads,) head_dim, head_dim]."""
    y = torch.zeros_like(x)
    for j in range(x.shape[-1]):
        y = y + matrix[..., None, :, j] * x[..., j : j + 1]
    return y


def rotate(x: torch.Tensor, rotation: torch.Tensor | None) -> torch.Tensor:
    """Rotate float32 x [..., heads, tokens, head_dim] by the signs [head_dim] of a randomised Hadamard rotation, or by an orthonormal
    matrix [head_dim, head_dim] or [heads, head_dim, head_dim]; None leaves it as it is."""
    if rotation is None:
        return x
    return hadamard(x * rotation) if rotation.dim() == 1 else dense(x, rotation)


def unrotate(x: torch.Tensor, rotation: torch.Tensor | None) -> torch.Tensor:
    """The inverse of rotate."""
    if rotation is None:
        return x
    return hadamard(x) * rotation if rotation.dim() == 1 else dense(x, rotation.transpose(-1, -2))
