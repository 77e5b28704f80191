"""Ways to round rows [heads, tokens, head_dim] to a few bits, each giving back what a reader of the codes would see.

`lloyd`, `uniform` and `asymmetric` do what csrc/format.h says, in plain PyTorch; the others are what bench/ideas.py tries.
"""

from functools import lru_cache

import torch

HALVES = {3: (15, 45, 79, 127), 4: (6, 18, 31, 44, 58, 75, 97, 127),
          5: (3, 8, 13, 18, 23, 28, 34, 40, 46, 53, 61, 70, 80, 93, 108, 127)}
CLIPS = {3: (0.64, 0.72, 0.80, 0.88), 4: (0.82, 0.87, 0.93, 0.98), 5: (0.87, 0.92, 0.97, 1.02)}
UNIFORM_CLIP = {3: 0.75, 4: 0.85, 5: 0.95}
TINY = 1e-20


def levels(bits: int) -> torch.Tensor:
    """The levels of `lloyd`, smallest first, float32 [2^bits]."""
    half = torch.tensor(HALVES[bits], dtype=torch.float32)
    return torch.cat([-half.flip(0), half])


def nearest(y: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return table[torch.bucketize(y, (table[1:] + table[:-1]) / 2)]


def fp16(scale: torch.Tensor) -> torch.Tensor:
    return scale.half().float()


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(-1, keepdim=True)


def best_clip(y, table, clips, weights=1.0):
    """The levels with the least squared error, over clips and scales, of channels times weights: like y."""
    unit = y.abs().amax(-1, keepdim=True).clamp_min(TINY) / table[-1]
    best = gain = None
    for clip in clips:
        chosen = nearest(y / (unit * clip), table)
        better = dot(y, weights * chosen).square() / dot(chosen, weights * chosen)
        best = chosen if best is None else torch.where(better > gain, chosen, best)
        gain = better if gain is None else torch.maximum(gain, better)
    return best


def unbiased(y, chosen, gram=None):
    """The scale with which <y, y^> = <y, y>, RaBitQ's estimator (arXiv 2405.12497); gram [heads or 1, head_dim, head_dim] gives the inner
    product of the rows before a basis that is not orthonormal."""
    towards = y if gram is None else y @ gram
    return fp16(dot(y, towards).clamp_min(TINY) / dot(chosen, towards).clamp_min(TINY))


def least_squares(y, chosen):
    """It shrinks y^: a query that points along a key sees its score too small."""
    return fp16(dot(y, chosen) / dot(chosen, chosen))


def norm_preserving(y, chosen):
    return fp16((dot(y, y) / dot(chosen, chosen)).sqrt())


def logarithmic(y, chosen, steps=16):
    """`unbiased` in 8 bits: a power of 2^(1 / steps)."""
    return ((dot(y, y).clamp_min(TINY) / dot(y, chosen).clamp_min(TINY)).log2() * steps).round().div(steps).exp2()


def lloyd(y, bits=4, clips=None, table=None, scale=unbiased):
    """Lloyd-Max levels, the best of four clips, and one fp16 scale: the format's `lloyd`."""
    chosen = best_clip(y, levels(bits) if table is None else table, clips or CLIPS[bits])
    return chosen * scale(y, chosen)


def lloyd_weighted(y, weights, bits=4):
    """The clip of least squares with a weight per channel, and an unbiased scale."""
    chosen = best_clip(y, levels(bits), CLIPS[bits], weights)
    return chosen * unbiased(y, chosen)


def uniform(y, bits=4, scale=least_squares):
    """Mid-rise levels, clipped, one fp16 scale."""
    count = 2**bits
    step = y.abs().amax(-1, keepdim=True).clamp_min(TINY) * UNIFORM_CLIP[bits] / ((count - 1) / 2)
    level = (y / step + count / 2).floor().clamp(0, count - 1) - (count - 1) / 2
    return level * scale(y, level)


def asymmetric(y, bits=4):
    """SAW-INT4's (arXiv 2604.19157): minimum and range of the row, both fp16 here."""
    least = y.amin(-1, keepdim=True)
    step = (y.amax(-1, keepdim=True) - least).clamp_min(TINY) / (2**bits - 1)
    return ((y - least) / step).round().clamp(0, 2**bits - 1) * fp16(step) + fp16(least)


def feedback_matrix(metric: torch.Tensor) -> torch.Tensor:
    """The upper triangular matrix, ones on its diagonal, of the Cholesky factor of a metric: float64 to float32,
    [..., head_dim, head_dim]."""
    upper = torch.linalg.cholesky(metric).transpose(-1, -2)
    return (upper / upper.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)).float()


def with_feedback(y, feedback, gram, bits=4):
    """Round channel after channel, the last one first; each is corrected for the errors made so far, so that the row's error avoids the
    directions in which the metric of feedback_matrix is large. One fp16 scale: that of the best clip while rounding, then the unbiased one.

    Successive rounding along a Cholesky factor: Babai's nearest plane (Combinatorica 1986), used for weights by GPTQ (arXiv 2210.17323).
    """
    table = levels(bits)
    scale = least_squares(y, best_clip(y, table, CLIPS[bits])).transpose(-1, -2)[:, 0].clamp_min(TINY)
    rows = y.transpose(-1, -2).contiguous()
    target, chosen = rows.clone(), torch.empty_like(rows)
    for channel in range(rows.shape[1] - 1, -1, -1):
        chosen[:, channel] = nearest(target[:, channel] / scale, table)
        error = rows[:, channel] - chosen[:, channel] * scale
        target[:, :channel].baddbmm_(feedback[:, :channel, channel, None], error[:, None])
    chosen = chosen.transpose(-1, -2)
    return chosen * unbiased(y, chosen, gram)


def gaussian_levels(bits: int, rounds: int = 300) -> torch.Tensor:
    """Lloyd-Max levels for a Gaussian (Lloyd 1982, Max 1960), smallest first."""
    normal = torch.distributions.Normal(0.0, 1.0)
    table = torch.linspace(-2.0, 2.0, 2**bits)
    for _ in range(rounds):
        edges = torch.cat([torch.tensor([-8.0]), (table[1:] + table[:-1]) / 2, torch.tensor([8.0])])
        density, mass = normal.log_prob(edges).exp(), normal.cdf(edges)
        table = (density[:-1] - density[1:]) / (mass[1:] - mass[:-1])
    return table


@lru_cache(maxsize=None)
def pair_points(bits: int, samples: int = 100_000, rounds: int = 60) -> torch.Tensor:
    """4^bits points of the plane for two channels at a time, by k-means on a Gaussian: at least as good as a hexagonal lattice."""
    sample = torch.randn(samples, 2, generator=torch.Generator().manual_seed(0))
    points = sample[: 4**bits].clone()
    for _ in range(rounds):
        owner = torch.cdist(sample, points).argmin(-1)
        counts = torch.zeros(len(points)).index_add_(0, owner, torch.ones(samples)).clamp_min(1)
        points = torch.zeros_like(points).index_add_(0, owner, sample) / counts[:, None]
    return points


def pairs(y, bits=4):
    """Two channels share a code of twice the bits, the nearest of pair_points; unbiased scale."""
    points = pair_points(bits)
    scaled = (y * (y.shape[-1] / dot(y, y).clamp_min(TINY)).sqrt()).unflatten(-1, (-1, 2))
    owner = torch.cat([torch.cdist(part, points).argmin(-1) for part in scaled.flatten(0, -2).split(65536)])
    chosen = points[owner].view_as(scaled).flatten(-2)
    return chosen * unbiased(y, chosen)
