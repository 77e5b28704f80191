"""int4kv selftest: every kernel of a device against the reference in plain PyTorch, which runs on the CPU."""

from dataclasses import dataclass, field
from itertools import product

import torch

from . import ops, reference
from .rotation import hadamard_signs

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the largest output: scores in fp32, one rounding of it
HEAD_DIMS = (64, 128, 256)
ODD_HEAD_DIMS = (32, 96, 160, 192, 224)


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

    def __init__(self, heads, head_dim, first, end, capacity, rows, groups, seed, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(2, heads, end - first, head_dim, generator=generator).to(dtype)
        self.codes = torch.zeros(2, heads, capacity, head_dim // 2, dtype=torch.uint8)
        self.scales = torch.zeros(2, heads, capacity, groups, dtype=torch.float16)
        self.recent = torch.zeros(2, heads, rows, head_dim, dtype=torch.float16)
        self.signs = hadamard_signs(head_dim)
        reference.quantize(self.x, self.codes, self.scales, first, rotation=self.signs, recent=self.recent)

    def empty(self, device):
        """Buffers like these, cleared, on a device."""
        return [torch.zeros_like(t).to(device) for t in (self.codes, self.scales, self.recent)]

    @property
    def stored(self):
        return self.codes, self.scales, self.recent


def run(device: str, tell=lambda text: None):
    """Yield a Finding for every kernel of the device; `tell` hears what is going on."""
    for check in (check_quantize, check_dequantize, *ATTENTION):
        yield check(device, tell)


def check_quantize(device, tell) -> Finding:
    found = Finding("quantize", "bytes")
    for head_dim, groups, dtype in product(HEAD_DIMS + ODD_HEAD_DIMS, (1, 2), TOLERANCE):
        if head_dim % (32 * groups):
            continue
        tell(f"quantize, head_dim {head_dim}")
        side = Side(3, head_dim, 5, 45, 40, 12, groups, seed=head_dim, dtype=dtype)
        ours = side.empty(device)
        ops.quantize(side.x.to(device), *ours[:2], 5, rotation=side.signs.to(device), recent=ours[2])
        found.add(sum(differing_bytes(a, b.cpu()) for a, b in zip(side.stored, ours)), 0)
    return found


def check_dequantize(device, tell) -> Finding:
    found = Finding("dequantize", "bytes")
    for head_dim in HEAD_DIMS + ODD_HEAD_DIMS:
        tell(f"dequantize, head_dim {head_dim}")
        side = Side(2, head_dim, 5, 45, 40, 12, 1, seed=head_dim)
        expected = reference.dequantize(*side.stored[:2], 5, 45, head_dim, rotation=side.signs)
        got = ops.dequantize(*(t.to(device) for t in side.stored[:2]), 5, 45, head_dim, rotation=side.signs.to(device))
        found.add(differing_bytes(expected, got.cpu()), 0)
    return found


def attention_check(name, groups, queries, keys, head_dims=HEAD_DIMS, scales=1):
    """A check of attend over every combination, with the ring, a window and a softcap among them."""

    def check(device, tell) -> Finding:
        found = Finding(name, "error")
        for group, count, length, head_dim, dtype in product(groups, queries, keys, head_dims, TOLERANCE):
            tell(f"{name}, head_dim {head_dim}")
            found.add(attention_error(device, group, count, length, head_dim, scales, dtype), TOLERANCE[dtype])
        return found

    return check


def attention_error(device, group, queries, keys, head_dim, scales, dtype) -> float:
    """The largest error of one call, relative to the largest output."""
    k, v = (Side(2, head_dim, 3, 3 + keys, keys + 5, 40, scales, seed) for seed in (keys, keys + 1))
    q = torch.randn(2, 2 * group, queries, head_dim, generator=torch.Generator().manual_seed(9)).to(dtype)
    mask = torch.rand(2, 1, queries, keys, generator=torch.Generator().manual_seed(1)) > 0.2 if queries > 1 else None
    options = dict(recent_start=max(3, 3 + keys - 40), recent_window=20, window=keys // 2 if keys > 300 else 0, softcap=20.0 if group == 2 else 0.0)
    tensors = dict(k_recent=k.recent, v_recent=v.recent, k_rotation=k.signs, v_rotation=v.signs, mask=mask)
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
)


def differing_bytes(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.contiguous().view(torch.uint8) != b.contiguous().view(torch.uint8)).sum())
