"""Fixed orthonormal matrices, the same on every machine: SplitMix64 in place of a library's random numbers, float64 throughout."""

import math

import torch

_MASK = 2**64 - 1


def _splitmix64(state: int) -> int:
    """One step of Steele, Lea and Flood's SplitMix64 (OOPSLA 2014): what is drawn is part of the format, not of torch's RNG."""
    z = (state * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def random_signs(head_dim: int) -> torch.Tensor:
    """float32 [head_dim] of +1 and -1."""
    return torch.tensor([1.0 - 2.0 * (_splitmix64(c + 1) & 1) for c in range(head_dim)])


def srft_matrix(head_dim: int) -> torch.Tensor:
    """The sign-randomised real FFT as a matrix, float64 [head_dim, head_dim], for even head_dim.

    Rows: the real part of bin 0, real and imaginary part of bins 1, 2, ..., the real part of the last bin, of an FFT of norm 1. The inner
    bins stand for their mirror images too and weigh sqrt(2), which makes the half spectrum orthonormal (Bergach, arXiv 2605.05699).
    """
    half, angle = head_dim // 2, 2 * math.pi / head_dim
    parts = [(math.cos, 0)] + [(part, k) for k in range(1, half) for part in (math.cos, math.sin)] + [(math.cos, half)]
    rows = []
    for part, k in parts:
        weight = math.sqrt((1 if k in (0, half) else 2) / head_dim)
        rows.append([weight * part(-angle * (j * k % head_dim)) for j in range(head_dim)])
    return torch.tensor(rows, dtype=torch.float64) * random_signs(head_dim)


def householder_matrix(head_dim: int) -> torch.Tensor:
    """The product of head_dim / 2 fixed reflections I - 2 u u^T / u^T u, float64 [head_dim, head_dim]."""
    matrix = torch.eye(head_dim, dtype=torch.float64)
    for r in range(head_dim // 2):
        u = torch.tensor([_splitmix64((r + 1) * head_dim + c + 1) / 2.0**63 - 1.0 for c in range(head_dim)], dtype=torch.float64)
        u = u.unsqueeze(-1)
        matrix = matrix - u * (_tree_sum(u * matrix) * 2.0 / _tree_sum(u * u))
    return matrix


def _tree_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum over the first dimension, in an order that no library or vector width changes."""
    while len(x) > 1:
        half = len(x) // 2
        folded = x[:half] + x[half : 2 * half]
        x = torch.cat([folded, x[2 * half :]]) if len(x) % 2 else folded
    return x[0]
