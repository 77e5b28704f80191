"""int4kv selftest: every kernel of a device against the reference in plain PyTorch, which runs on the CPU."""

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

import torch

from . import ops, reference
from .codebook import levels, pack
from .rotation import hadamard_signs

TOLERANCE = {torch.float32: 0.0, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the largest output: one rounding of it
# Beside that: mps sums in fp32; on the CPU q and the weights of the values are 16-bit integers; CUDA's matrix units take the weights as fp16.
DEVICE_TOLERANCE = {"mps": 1e-5, "cpu": 5e-4, "cuda": 1e-3}
HEAD_DIMS = (64, 128, 256)
ODD_HEAD_DIMS = (32, 96, 160, 192, 224)
DEFAULT = (4, 4, "lloyd")  # bits of K, of V, codebook
RECIPES = [(bits, bits, codebook) for bits in (3, 4, 5, 8) for codebook in ("uniform", "lloyd", "absmax", "asymmetric")]
RECIPES += [(5, 4, "lloyd"), (8, 4, "lloyd")]


@dataclass
class Finding:
    """What one kernel did on all its cases. unit: "bytes" that differ, or "error", relative to the largest output: one per dtype."""

    kernel: str
    unit: str
    cases: int = 0
    errors: dict = field(default_factory=dict)  # accepted error -> largest error

    @property
    def ok(self) -> bool:
        return all(error <= limit for limit, error in self.errors.items())

    def add(self, error: float, limit: float) -> None:
        self.cases += 1
        self.errors[limit] = max(self.errors.get(limit, 0.0), float("inf") if error != error else error)

    def describe_error(self) -> str:
        return f"{self.errors[0]} bytes" if self.unit == "bytes" else " ".join(f"{self.errors[limit]:.1e}" for limit in sorted(self.errors))

    def describe_limit(self) -> str:
        return "0 bytes" if self.unit == "bytes" else " ".join(f"{limit:.0e}" for limit in sorted(self.errors))


class Side:
    """K or V in a ring of `capacity` slots, written by the reference on the CPU."""

    def __init__(self, heads, head_dim, first, end, capacity, rows, groups, seed, dtype=torch.float32, bits=4, codebook="lloyd"):
        generator = torch.Generator().manual_seed(seed)
        numbers = groups * (2 if codebook == "asymmetric" else 1)
        self.x = torch.randn(2, heads, end - first, head_dim, generator=generator).to(dtype)
        self.codes = torch.zeros(2, heads, capacity, head_dim * bits // 8, dtype=torch.uint8)
        self.scales = torch.zeros(2, heads, capacity, numbers, dtype=torch.float16)
        self.recent, self.sink = (torch.zeros(2, heads, n, head_dim, dtype=torch.float16) for n in (rows, 8))
        self.signs, self.codebook = hadamard_signs(head_dim), codebook
        reference.quantize(self.x, self.codes, self.scales, first, rotation=self.signs, recent=self.recent, codebook=codebook)
        self.sink.normal_(generator=generator)
        self.centre = torch.randn(1, heads, head_dim, generator=generator)

    def empty(self, device):
        """Buffers like these, cleared, on a device."""
        return [torch.zeros_like(t).to(device) for t in (self.codes, self.scales, self.recent)]

    @property
    def stored(self):
        return self.codes, self.scales, self.recent


same_side = lru_cache(maxsize=128)(Side)  # which many cases only read: writing it takes longer than the attention


def run(device: str, tell=lambda text: None):
    """Yield a Finding for every kernel of the device; `tell` hears what is going on."""
    for check in (check_quantize, check_dequantize, check_levels, *ATTENTION):
        yield check(device, tell)


def check_quantize(device, tell) -> Finding:
    found = Finding("quantize", "bytes")
    cases = [(*case, DEFAULT) for case in product(HEAD_DIMS + ODD_HEAD_DIMS, (1, 2), TOLERANCE)]
    cases += [(head_dim, 1, torch.float32, recipe) for head_dim, recipe in product((64, 96, 128, 256), RECIPES)]
    for head_dim, groups, dtype, (bits, _, codebook) in cases:
        if head_dim % (32 * groups):
            continue
        tell(f"quantize, head_dim {head_dim}, {bits} bits, {codebook}")
        side = Side(3, head_dim, 5, 45, 40, 12, groups, seed=head_dim, dtype=dtype, bits=bits, codebook=codebook)
        ours = side.empty(device)
        ops.quantize(side.x.to(device), *ours[:2], 5, rotation=side.signs.to(device), recent=ours[2], codebook=codebook)
        found.add(sum(differing_bytes(a, b.cpu()) for a, b in zip(side.stored, ours)), 0)
    return found


def check_dequantize(device, tell) -> Finding:
    found = Finding("dequantize", "bytes")
    for head_dim, (bits, _, codebook) in product(HEAD_DIMS + ODD_HEAD_DIMS, RECIPES):
        tell(f"dequantize, head_dim {head_dim}, {bits} bits, {codebook}")
        side = Side(2, head_dim, 5, 45, 40, 12, 1, seed=head_dim, bits=bits, codebook=codebook)
        options = dict(start=5, end=45, head_dim=head_dim, codebook=codebook)
        expected = reference.dequantize(*side.stored[:2], **options, rotation=side.signs)
        got = ops.dequantize(*(t.to(device) for t in side.stored[:2]), **options, rotation=side.signs.to(device))
        found.add(differing_bytes(expected, got.cpu()), 0)
    return found


def check_levels(device, tell) -> Finding:
    """A single token has weight 1: with a scale of 1 attention gives the levels of its codes."""
    found = Finding("attend: every code's level", "error")
    for (bits, _, codebook), group in product(RECIPES, (1, 3)):
        tell(f"attend, the levels of {bits} bits, {codebook}")
        codes = (torch.arange(256) % 2**bits).to(torch.uint8)
        packed = pack(codes, bits).expand(1, 1, 1, -1).contiguous().to(device)
        numbers = torch.tensor([1.0, 0.0] if codebook == "asymmetric" else [1.0], dtype=torch.float16).view(1, 1, 1, -1).to(device)
        got = ops.attend(torch.ones(1, group, 1, 256, device=device), packed, numbers, packed, numbers, 0, 1, 1.0, codebook=codebook)
        expected = levels(bits, codebook)[codes.long()]
        found.add(float((got.cpu() - expected).abs().max() / expected.abs().max()), tolerance(device, torch.float32))
    return found


def tolerance(device: str, dtype: torch.dtype) -> float:
    """The accepted error of attention, relative to the largest output."""
    return max(TOLERANCE[dtype], DEVICE_TOLERANCE[torch.device(device).type])


def attention_check(name, groups, queries, keys, head_dims=HEAD_DIMS, scales=1, recipes=(DEFAULT,), dtypes=tuple(TOLERANCE)):
    """A check of attend over every combination, with ring, sinks, V's centre, a window and a softcap among them."""

    def check(device, tell) -> Finding:
        found = Finding(name, "error")
        for group, count, length, head_dim, recipe, dtype in product(groups, queries, keys, head_dims, recipes, dtypes):
            tell(f"{name}, head_dim {head_dim}, K {recipe[0]} and V {recipe[1]} bits, {recipe[2]}")
            found.add(attention_error(device, group, count, length, head_dim, scales, recipe, dtype), tolerance(device, dtype))
        return found

    return check


def attention_error(device, group, queries, keys, head_dim, scales, recipe, dtype) -> float:
    """The largest error of one call, relative to the largest output."""
    k, v = (same_side(2, head_dim, 3, 3 + keys, keys + 5, 40, scales, keys + i, bits=recipe[i], codebook=recipe[2]) for i in range(2))
    q = torch.randn(2, 2 * group, queries, head_dim, generator=torch.Generator().manual_seed(9)).to(dtype)
    mask = torch.rand(2, 1, queries, keys, generator=torch.Generator().manual_seed(1)) > 0.2 if queries > 1 else None
    options = dict(recent_start=max(3, 3 + keys - 40), recent_window=20, window=keys // 2 if keys > 300 else 0,
                   softcap=20.0 if group == 2 else 0.0, codebook=recipe[2])
    tensors = dict(k_recent=k.recent, v_recent=v.recent, k_sink=k.sink, v_sink=v.sink, v_centre=v.centre, k_rotation=k.signs,
                   v_rotation=v.signs, mask=mask)
    stored = (k.codes, k.scales, v.codes, v.scales)
    exact = reference.attend(q.double() if dtype == torch.float32 else q, *stored, 3, 3 + keys, head_dim**-0.5, dtype=torch.float64,
                             **tensors, **options)
    there = {name: None if t is None else t.to(device) for name, t in tensors.items()}
    ours = ops.attend(q.to(device), *(t.to(device) for t in stored), 3, 3 + keys, head_dim**-0.5, **there, **options)
    return float((ours.cpu().double() - exact.double()).abs().max() / exact.abs().max())


ATTENTION = (
    attention_check("attend: 1 or 2 rows (SIMD)", (1, 2), (1,), (1, 33, 300)),
    attention_check("attend: 3 to 8 rows (matrix)", (3, 5, 6, 7, 8), (1,), (1, 33, 300)),
    attention_check("attend: chunks (matrix)", (1, 2, 4, 7), (5, 70), (300,)),
    attention_check("attend: split tokens, merge", (1, 4), (1,), (2000,)),
    attention_check("attend: several scales, odd head_dim (SIMD)", (1, 3), (1, 4), (65,), (96, 160), 1),
    attention_check("attend: groups of 32 (SIMD)", (1, 3), (1, 4), (65,), (64, 128, 256), 2),
    attention_check("attend: every width and codebook (SIMD)", (1, 2), (1,), (65,), (64, 96, 128), 1, RECIPES, (torch.float32,)),
    attention_check("attend: every width and codebook (matrix)", (3,), (1,), (65,), HEAD_DIMS, 1, RECIPES, (torch.float32,)),
)


def differing_bytes(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.contiguous().view(torch.uint8) != b.contiguous().view(torch.uint8)).sum())
