"""Calls that reach every Metal kernel, small enough for a sanitizer. As a program it makes them on the emulated device:

    python tests/metal_calls.py [MUTATED.mm]      exits with 1 and a message when mps and CPU disagree

MUTATED.mm takes the place of the file of that name in csrc/mps. RIG_RECORD=DIR keeps the dispatches.
"""

import sys
from itertools import product
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent


def sides(head_dim, tokens, capacity, rows, scales=1, seed=0):
    """k, v and empty buffers for both: codes, scales and recent rows, with one batch row too many."""
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(2, 2, tokens, head_dim, generator=generator) for _ in range(2))
    codes = [torch.zeros(3, 2, capacity, head_dim // 2, dtype=torch.uint8) for _ in range(2)]
    scale = [torch.zeros(3, 2, capacity, scales, dtype=torch.float16) for _ in range(2)]
    recent = [torch.zeros(3, 2, rows, head_dim, dtype=torch.float16) for _ in range(2)]
    return k, v, codes, scale, recent


def on_the_edges(tokens, head_dim):
    """Rows whose channels lie a few units in the last place around the borders between codes: any other rounding shows."""
    step = torch.tensor(0.85) / torch.tensor(7.5)
    borders = (torch.arange(head_dim) % 15 - 7) * step
    x = borders.repeat(2, 2, tokens, 1)
    x.view(torch.int32).add_(torch.arange(tokens).view(-1, 1) % 9 - 4)
    x[..., 0] = 1.0  # the largest
    return x


def written(ops, signs, device, head_dim, tokens, capacity, rows, scales=1):
    """The buffers after quantize_kv, in the op's order, then the recent rows."""
    k, v, codes, scale, recent = sides(head_dim, tokens, capacity, rows, scales)
    there = [t.to(device)[1:] for t in (codes[0], scale[0], codes[1], scale[1], *recent)]  # with a storage offset
    centre = k.mean((0, 2))[None].to(device)
    ops.quantize_kv(k.to(device), v.to(device), *there[:4], 5, k_centre=centre, k_rotation=signs.to(device),
                    v_rotation=signs.to(device), k_recent=there[4], v_recent=there[5])
    return there


def attended(ops, signs, device, there, group, queries, tokens, **options):
    """attend over tokens 5 .. 5 + tokens with ring, mask and softcap."""
    head_dim = there[0].shape[-1] * 2
    q = torch.randn(2, 2 * group, queries, head_dim, generator=torch.Generator().manual_seed(1)).to(device)
    mask = (torch.rand(2, 1, queries, tokens, generator=torch.Generator().manual_seed(2)) > 0.2).to(device)
    rows = there[4].shape[2]
    return ops.attend(q, *there[:4], 5, 5 + tokens, head_dim**-0.5, k_rotation=signs.to(device), v_rotation=signs.to(device),
                      k_recent=there[4], v_recent=there[5], recent_start=5 + max(tokens - rows, 0), recent_window=6,
                      **({"mask": mask, "softcap": 10.0} | options))


def all_calls(device):
    """Every result, in order, as CPU tensors: the two devices must agree."""
    from int4kv import ops
    from int4kv.rotation import hadamard_signs

    results = []
    for head_dim in range(32, 257, 32):
        signs = hadamard_signs(head_dim)
        there = written(ops, signs, device, head_dim, tokens=70, capacity=72, rows=9)
        results += there
        results.append(ops.dequantize(*there[:2], 5, 75, head_dim, rotation=signs.to(device)))
        results.append(ops.dequantize(*there[:2], 5, 75, head_dim, centre=torch.full((1, 2, head_dim), 0.3).to(device)))
        shapes = product((1, 2, 3, 7), (1, 5)) if head_dim in (64, 128, 256) else [(1, 1), (2, 1)]
        results += [attended(ops, signs, device, there, group, queries, 70) for group, queries in shapes]
    edges = [torch.zeros(2, 2, 70, n, dtype=t, device=device) for n, t in ((32, torch.uint8), (1, torch.float16))]
    ops.quantize(on_the_edges(70, 64).to(device), *edges, 0)
    results += edges
    signs = hadamard_signs(64)
    for tokens, calls in ((600, ((1, 0), (6, 0), (6, 550))), (9000, ((1, 0), (6, 0)))):
        there = written(ops, signs, device, 64, tokens, capacity=tokens, rows=9)
        results += [attended(ops, signs, device, there, group, 1, tokens, mask=None, window=window) for group, window in calls]
    return [r.cpu() for r in results]


def disagreement(ours, theirs):
    """The first result that differs by more than rounding, or None."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.dtype == torch.uint8 and not torch.equal(a, b):
            return f"result {index}: codes differ"
        if not torch.allclose(a.float(), b.float(), rtol=0, atol=1e-5, equal_nan=True):
            return f"result {index}: {(a.float() - b.float()).abs().max()} apart"
    return None


def main(mutated=None):
    from rig import device

    device.load()
    import int4kv  # noqa: F401  the ops' schemas

    mps = ROOT / "csrc" / "mps"
    sources = [p for p in sorted(mps.glob("*.mm")) if mutated is None or p.name != mutated.name] + [ROOT / "csrc" / "checks.cpp"]
    device.load_ops(sources + ([mutated] if mutated else []), flags=("-fvisibility=hidden", f"-I{mps}"))
    return disagreement(all_calls("mps"), all_calls("cpu"))


if __name__ == "__main__":
    sys.exit(main(*(Path(a) for a in sys.argv[1:])))
