"""Channels to codes and back in plain PyTorch, bit for bit as csrc/format.h states it: the oracle of every backend.

Lloyd-Max levels: Lloyd (1982), Max (1960); for rotated KV vectors: TurboQuant (arXiv 2504.19874). The unbiased scale, |x|^2 / (x . level),
is the estimator of RaBitQ (arXiv 2405.12497). Mid-rise codes with a least-squares scale and the choice among several clips are this project's.
"""

from functools import lru_cache

import torch

UNIT = 32
TINY = 1e-30
CLIP = {3: 0.75, 4: 0.85, 5: 0.95, 8: 1.0}
LLOYD = {3: (15, 45, 79, 127), 4: (6, 18, 31, 44, 58, 75, 97, 127), 5: (3, 8, 13, 18, 23, 28, 34, 40, 46, 53, 61, 70, 80, 93, 108, 127)}
LLOYD_LARGEST = 127.0
FITS = {3: (0.64, 0.72, 0.80, 0.88), 4: (0.82, 0.87, 0.93, 0.98), 5: (0.87, 0.92, 0.97, 1.02)}
PLANES = {3: (2, 1), 4: (4,), 5: (4, 1), 8: (4, 4)}
NAN = float("nan")


def _fold(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of 16 nibble bytes: its byte in a plane of this width, and how far it is shifted up there."""
    i = torch.arange(UNIT // 2)
    return i % (4 * width), width * (i // (4 * width))


def pack(codes: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """uint8 codes [..., head_dim] -> planes [..., head_dim * bits / 8]."""
    planes, position = [], 0
    for width in PLANES[bits]:
        part = (codes.int() >> position) & (2**width - 1)
        halves = part.unflatten(-1, (-1, 2, UNIT // 2))
        byte, shift = _fold(width)
        folded = (halves[..., 0, :] | halves[..., 1, :] << 4) << shift
        plane = torch.zeros(*folded.shape[:-1], 4 * width, dtype=torch.int32).index_add_(-1, byte, folded.int())
        planes.append(plane.to(torch.uint8).flatten(-2))
        position += width
    return torch.cat(planes, dim=-1)


def unpack(packed: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """The inverse of pack."""
    head_dim = packed.shape[-1] * 8 // bits
    codes, begin, position = 0, 0, 0
    for width in PLANES[bits]:
        end = begin + head_dim * width // 8
        byte, shift = _fold(width)
        nibbles = packed[..., begin:end].int().unflatten(-1, (-1, 4 * width))[..., byte] >> shift
        halves = torch.stack([nibbles, nibbles >> 4], dim=-2) & (2**width - 1)
        codes, begin, position = codes | halves.flatten(-3) << position, end, position + width
    return codes.to(torch.uint8)


def lane_sum(y: torch.Tensor) -> torch.Tensor:
    """Sum over the last dimension in the format's order: 32 lanes, then folds 16, 8, 4, 2, 1 apart."""
    units = y.unflatten(-1, (-1, UNIT))
    lanes = units[..., 0, :]
    for u in range(1, units.shape[-2]):
        lanes = lanes + units[..., u, :]
    half = UNIT // 2
    while half:
        lanes, half = lanes[..., :half] + lanes[..., half : 2 * half], half // 2
    return lanes[..., 0]


@lru_cache(maxsize=None)
def levels(bits: int, codebook: str) -> torch.Tensor:
    """float32 [2^bits]: what each code stands for, before the scale."""
    code, n = torch.arange(2.0**bits), 2**bits
    if codebook == "lloyd" and bits < 8:
        upper = torch.tensor(LLOYD[bits], dtype=torch.float32)
        return torch.cat([-upper.flip(0), upper])
    return code - {"absmax": n / 2, "asymmetric": 0.0}.get(codebook, (n - 1) / 2)


def _inverse(step, largest):
    return torch.where(largest < TINY, 0.0, 1.0 / step)


def _uniform(x, bits):
    n, largest = 2**bits, x.abs().amax(-1, keepdim=True)
    inverse = _inverse(largest * (torch.tensor(CLIP[bits]) / torch.tensor((n - 1) / 2)), largest)
    codes = (x * inverse + n / 2).floor().clamp(0, n - 1)
    odd = 2.0 * codes - (n - 1)
    scale = 2.0 * lane_sum(x * odd) / (odd * odd).sum(-1)
    return codes, torch.where(inverse[..., 0] == 0.0, 0.0, scale)


def _lloyd(x, bits):
    table, largest = levels(bits, "lloyd"), x.abs().amax(-1, keepdim=True)
    upper = table[len(table) // 2 :]
    unit = largest / LLOYD_LARGEST
    inverse = _inverse(unit, largest)
    y, borders = x * inverse, (upper[1:] + upper[:-1]) / 2
    best = None
    for fit in FITS[bits]:
        index = torch.bucketize((y * (1.0 / torch.tensor(fit))).abs(), borders, right=True)
        codes = torch.where(y < 0, len(upper) - 1 - index, len(upper) + index)
        level = table[codes]
        total, squares = lane_sum(y * level), (level * level).sum(-1)
        found = (total * total / squares, codes.float(), total)
        best = found if best is None else _better(found, best)
    scale = lane_sum(y * y) / best[2] * unit[..., 0]
    return best[1], torch.where(inverse[..., 0] == 0.0, 0.0, scale)


def _better(new, old):
    wins = new[0] > old[0]
    return torch.where(wins, new[0], old[0]), torch.where(wins.unsqueeze(-1), new[1], old[1]), torch.where(wins, new[2], old[2])


def _absmax(x, bits):
    half, largest = 2.0 ** (bits - 1), x.abs().amax(-1, keepdim=True)
    step = largest / (half - 1)
    inverse = _inverse(step, largest)
    codes = (x * inverse + (half + 0.5)).floor().clamp(1, 2 * half - 1)
    return codes, torch.where(inverse == 0.0, 0.0, step)[..., 0]


def _asymmetric(x, bits):
    low, top = x.amin(-1, keepdim=True) + 0.0, 2.0**bits - 1  # never -0.0: which zero is the least is nobody's choice
    span = x.amax(-1, keepdim=True) - low
    step = span / top
    inverse = _inverse(step, span)
    codes = ((x - low) * inverse + 0.5).floor().clamp(0, top)
    return codes, torch.where(inverse == 0.0, 0.0, step)[..., 0], low[..., 0]


_ENCODERS = {"uniform": _uniform, "lloyd": _lloyd, "absmax": _absmax, "asymmetric": _asymmetric}


def encode(x: torch.Tensor, group_size: int, bits: int = 4, codebook: str = "uniform") -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [..., head_dim], centred and rotated -> (uint8 [..., head_dim * bits / 8], fp16 scales [..., groups] or, asymmetric,
    [..., 2 * groups]: scale, minimum, scale, ...)."""
    groups = x.unflatten(-1, (-1, group_size))
    broken = ~groups.isfinite().all(-1, keepdim=True)
    encoder = _ENCODERS["uniform" if (codebook, bits) == ("lloyd", 8) else codebook]
    codes, *stored = encoder(groups.masked_fill(broken, 0.0), bits)
    codes = codes.masked_fill(broken, 2 ** (bits - 1)).to(torch.uint8)
    stored = torch.stack(stored, dim=-1).half()
    lost = broken | ~stored.isfinite().all(-1, keepdim=True)
    return pack(codes.flatten(-2), bits), stored.masked_fill(lost, NAN).flatten(-2)


def decode(packed: torch.Tensor, scales: torch.Tensor, head_dim: int, codebook: str = "uniform") -> torch.Tensor:
    """Packed bytes and scales -> float32 [..., head_dim], still centred and rotated."""
    bits = packed.shape[-1] * 8 // head_dim
    stored = scales.float().unflatten(-1, (-1, 2 if codebook == "asymmetric" else 1))
    level = levels(bits, codebook)[unpack(packed, bits).long()].unflatten(-1, (stored.shape[-2], -1))
    value = level * stored[..., :1]
    return (value + stored[..., 1:] if codebook == "asymmetric" else value).flatten(-2)
