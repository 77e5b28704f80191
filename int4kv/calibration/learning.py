"""Transforms fitted to a model's own rows, one per KV head: a closed form, and rotations learned by gradient descent.

One scale serves a whole row, so rounding y = M x leaves an error that is nearly white, of power proportional to |y|^2. What it costs is
weighed by W: E[q q^T] for keys (the error of a score is q . e), the identity for values.
"""

import torch

from ..codebook import decode, encode

RIDGE = 0.01  # of the mean variance, added to each moment: directions that the sample hardly saw are not amplified
STEPS, BATCH = 64, 256
RATES = {"cayley": 3e-3, "householder": 1e-2}


def power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    """matrix^exponent of symmetric positive matrices [..., n, n]."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0.0).pow(exponent).unsqueeze(-2)) @ vectors.transpose(-1, -2)


def trace(matrix: torch.Tensor) -> torch.Tensor:
    """Sum of the diagonals of [..., n, n]."""
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def _ridged(moment):
    identity = torch.eye(moment.shape[-1], dtype=moment.dtype)
    return moment + RIDGE * (trace(moment) / moment.shape[-1])[..., None, None] * identity


def balanced(moment: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The symmetric M of the least weighted error after rounding, float64 [heads, head_dim, head_dim], keeping E|M x|^2 = E|x|^2.

    The error is proportional to tr(M C M^T) tr(M^-T W M^-1), C = moment, W = weight. By Cauchy and Schwarz it is least,
    (tr (C^1/2 W C^1/2)^1/2)^2, where M^T M is the geometric mean of C^-1 and W. Any rotation of M x does as well; a random one makes
    the rows to round Gaussian, as the codebook expects.
    """
    moment, weight = _ridged(moment), _ridged(weight)
    root, inverse = power(moment, 0.5), power(moment, -0.5)
    found = power(inverse @ power(root @ weight @ root, 0.5) @ inverse, 0.5)
    energy = trace(found @ moment @ found) / trace(moment)
    return found / energy.sqrt()[..., None, None]


def channel_lambda(moment: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What each channel is divided by, float32 [heads, head_dim], of geometric mean 1: (E[x_i^2] / W_ii)^1/4.

    The least error of balanced() among diagonal M: Bergach (arXiv 2605.05699) has a lambda per channel, but its formula is not public.
    """
    ratio = _ridged(moment).diagonal(dim1=-2, dim2=-1) / _ridged(weight).diagonal(dim1=-2, dim2=-1)
    logs = ratio.log() / 4
    return (logs - logs.mean(-1, keepdim=True)).exp().float()


def cayley(free: torch.Tensor) -> torch.Tensor:
    """The rotation (I - A)(I + A)^-1 of a free square matrix, A = free - free^T; free = 0 gives I (Cayley, 1846)."""
    skew, identity = free - free.transpose(-1, -2), torch.eye(free.shape[-1])
    return torch.linalg.solve(identity + skew, identity - skew)


def reflections(u: torch.Tensor) -> torch.Tensor:
    """The product of Householder reflections along the columns of u [heads, n, k], in compact WY form (Schreiber and Van Loan, 1989)."""
    inner = u.transpose(-1, -2) @ u
    triangle = inner.triu(1) + torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1) / 2)
    return torch.eye(u.shape[-2]) - u @ torch.linalg.solve_triangular(triangle, u.transpose(-1, -2), upper=True)


def _start(kind, heads, head_dim, generator):
    """Free parameters that make the identity, and what makes a rotation of them."""
    if kind == "cayley":
        return torch.zeros(heads, head_dim, head_dim), cayley
    u = torch.randn(heads, head_dim, head_dim // 4, generator=generator)
    return (u / u.norm(dim=-2, keepdim=True)).repeat_interleave(2, dim=-1), reflections  # each pair undoes itself


def _rounded(y, bits, codebook):
    """y through the codes. The codes have no gradient; the scale follows y, by least squares."""
    with torch.no_grad():
        fixed = decode(*encode(y, y.shape[-1], bits, codebook), y.shape[-1], codebook)
    return fixed * ((y * fixed).sum(-1, keepdim=True) / (fixed * fixed).sum(-1, keepdim=True).clamp_min(1e-30))


@torch.inference_mode(False)
@torch.enable_grad()
def learned(rows: torch.Tensor, base: torch.Tensor, bits: int, codebook: str, kind: str = "cayley") -> torch.Tensor:
    """A rotation R base with the least squared error of rounding, float32 [heads, head_dim, head_dim].

    rows: centred, float32 [heads, n, head_dim]. base: orthonormal [head_dim, head_dim]. kind: how R is parametrised, "cayley" or
    "householder" (head_dim / 2 reflectors), both after Bergach (arXiv 2605.05699). Adam, 64 steps of 256 rows, always the same ones.
    """
    rows, base = rows.clone(), base.clone()  # inside the caller's inference mode they would refuse to take part
    generator = torch.Generator().manual_seed(0)
    free, make = _start(kind, rows.shape[0], rows.shape[-1], generator)
    free.requires_grad_()
    optimizer = torch.optim.Adam([free], lr=RATES[kind])
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / STEPS, STEPS)
    for _ in range(STEPS):
        x = rows[:, torch.randint(rows.shape[1], (BATCH,), generator=generator)]
        y = x @ (make(free) @ base).transpose(-1, -2)
        optimizer.zero_grad()
        (y - _rounded(y, bits, codebook)).square().sum(-1).mean().backward()
        optimizer.step()
        decay.step()
    return (make(free) @ base).detach()
