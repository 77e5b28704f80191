"""Calls that reach every Metal kernel, width and codebook, small enough for a sanitizer. As a program it makes them on the emulated device:

    python tests/metal_calls.py [MUTATED]      exits with 1 and a message when mps and CPU disagree

MUTATED takes the place of the file of that name in csrc/mps or csrc/gpu. RIG_RECORD=DIR keeps the dispatches.
"""

import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

ROOT = Path(__file__).parent.parent
CODEBOOKS = ("uniform", "lloyd", "absmax", "asymmetric")
PLAIN = 16


class Recipe(NamedTuple):
    """What K and V are stored as. bits 16: plain fp16 rows."""

    k_bits: int = 4
    v_bits: int = 4
    codebook: str = "uniform"
    groups: int = 1

    def numbers(self):
        """fp16 numbers of a row beside its codes."""
        return self.groups * (2 if self.codebook == "asymmetric" else 1)


# Every width with every codebook, and the mixtures that have kernels of their own.
RECIPES = [Recipe(bits, bits, codebook) for bits, codebook in product((3, 4, 5, 8), CODEBOOKS)]
RECIPES += [Recipe(5, 4, "lloyd"), Recipe(8, 4, "lloyd"), Recipe(4, 3, "absmax"), Recipe(PLAIN, 4, "lloyd"), Recipe(4, PLAIN, "asymmetric")]


def empty_row_buffers(head_dim, capacity, bits, numbers):
    """Codes and scales for three batch rows of two heads."""
    shape, plain = (3, 2, capacity), bits == PLAIN
    codes = torch.zeros(*shape, head_dim if plain else head_dim * bits // 8, dtype=torch.float16 if plain else torch.uint8)
    return codes, torch.zeros(*shape, numbers, dtype=torch.float16)


def sides(recipe, head_dim, tokens, capacity, rows, seed=0):
    """k, v and empty buffers for both: codes, scales and recent rows, with one batch row too many."""
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(2, 2, tokens, head_dim, generator=generator) for _ in range(2))
    stored = [t for bits in recipe[:2] for t in empty_row_buffers(head_dim, capacity, bits, recipe.numbers())]
    recent = [torch.zeros(3, 2, rows, head_dim, dtype=torch.float16) for _ in range(2)]
    return k, v, stored + recent


def written(ops, signs, device, head_dim, tokens, capacity, rows, recipe=Recipe()):
    """The buffers after quantize_kv, in the op's order, then the recent rows."""
    k, v, buffers = sides(recipe, head_dim, tokens, capacity, rows)
    there = [t.to(device)[1:] for t in buffers]  # with a storage offset
    k_centre, v_centre = (x.mean((0, 2))[None].to(device) for x in (k, v))
    ops.quantize_kv(k.to(device), v.to(device), *there[:4], 5, k_centre=k_centre, v_centre=v_centre, k_rotation=signs.to(device),
                    v_rotation=signs.to(device), k_recent=there[4], v_recent=there[5], codebook=recipe.codebook)
    return there


def attended(ops, signs, device, there, group, queries, tokens, sharpness=1, **options):
    """attend over tokens 5 .. 5 + tokens with ring, sinks, V's centre, mask and softcap; `sharpness` spreads the scores."""
    head_dim, generator = there[4].shape[-1], torch.Generator().manual_seed(1)
    q, k_sink, v_sink, v_centre = (torch.randn(2, *shape, head_dim, generator=generator).to(device)
                                   for shape in ((2 * group, queries), (2, 8), (2, 8), (2,)))
    mask = torch.rand(2, 1, queries, tokens, generator=torch.Generator().manual_seed(2)) > 0.2
    mask[1, :, 1:2] = False  # a query that sees nothing
    rows = there[4].shape[2]
    return ops.attend(q, *there[:4], 5, 5 + tokens, sharpness * head_dim**-0.5, k_rotation=signs.to(device), v_rotation=signs.to(device),
                      v_centre=v_centre, k_recent=there[4], v_recent=there[5], recent_start=5 + max(tokens - rows, 0), recent_window=6,
                      **({"k_sink": k_sink.half(), "v_sink": v_sink.half(), "mask": mask.to(device), "softcap": 10.0} | options))


def default_calls(ops, device):
    """Every head_dim and shape of query rows at four bits."""
    from int4kv.rotation import hadamard_signs

    for head_dim in range(32, 257, 32):
        signs = hadamard_signs(head_dim)
        there = written(ops, signs, device, head_dim, tokens=70, capacity=72, rows=9)
        yield from there
        yield ops.dequantize(*there[:2], 5, 75, head_dim, rotation=signs.to(device))
        yield ops.dequantize(*there[:2], 5, 75, head_dim, centre=torch.full((1, 2, head_dim), 0.3).to(device))
        shapes = product((1, 2, 3, 7), (1, 5)) if head_dim in (64, 128, 256) else [(1, 1), (2, 1)]
        yield from (attended(ops, signs, device, there, group, queries, 70) for group, queries in shapes)


def recipe_calls(ops, device):
    """Every recipe at every head_dim of a matrix kernel, and one beside; rotations in blocks, groups of 32."""
    from int4kv.rotation import hadamard_signs

    for (recipe, head_dim), block in zip(product(RECIPES, (64, 128, 256, 96)), [16, 32, 8, 32, 64, 16, 2] * len(RECIPES)):
        signs = hadamard_signs(head_dim).view(-1, block if head_dim % block == 0 else 32)
        recipe = recipe._replace(groups=3 if head_dim == 96 else 1)
        there = written(ops, signs, device, head_dim, tokens=21, capacity=24, rows=5, recipe=recipe)
        yield from there
        yield ops.dequantize(*there[2:4], 5, 26, head_dim, rotation=signs.to(device), codebook=recipe.codebook)
        yield from (attended(ops, signs, device, there, group, 1, 21, codebook=recipe.codebook) for group in (1, 3))


def split_calls(ops, device):
    """So many tokens that they are split, more often than merge has simdgroups and lanes."""
    from int4kv.rotation import hadamard_signs

    signs = hadamard_signs(64)
    for tokens, calls in ((600, ((1, 0), (6, 0), (6, 550))), (9000, ((1, 0), (6, 0)))):
        there = written(ops, signs, device, 64, tokens, capacity=tokens, rows=9)
        yield from (attended(ops, signs, device, there, group, 1, tokens, mask=None, window=window) for group, window in calls)
        yield attended(ops, signs, device, there, 6, 1, tokens, sharpness=8, mask=None, softcap=0.0)


def step_calls(ops, device):
    """Plain decode steps of every head_dim, split; those of a matrix kernel also of one split, and within a window."""
    from int4kv.rotation import hadamard_signs

    plain = dict(k_sink=None, v_sink=None, mask=None, softcap=0.0)
    for head_dim in range(32, 257, 32):
        signs = hadamard_signs(head_dim)
        there = written(ops, signs, device, head_dim, 600, capacity=600, rows=9)
        shapes = ((600, 0), (90, 0), (600, 550)) if head_dim in (64, 128, 256) else ((600, 0),)
        yield from (attended(ops, signs, device, there, 3, 1, tokens, window=window, **plain) for tokens, window in shapes)


def on_the_edges(tokens, head_dim):
    """Rows whose channels lie a few units in the last place around the borders between codes: any other rounding shows."""
    step = torch.tensor(0.85) / torch.tensor(7.5)
    borders = (torch.arange(head_dim) % 15 - 7) * step
    return nudged(borders.repeat(2, 2, tokens, 1), 1.0)


def on_the_edges_of_lloyd(bits, tokens, head_dim):
    """The same of Lloyd-Max's borders under each of the clips that are tried, at a unit of 1."""
    from int4kv.codebook import FITS, LLOYD, LLOYD_LARGEST

    levels = torch.tensor(LLOYD[bits], dtype=torch.float32)
    borders = torch.outer(torch.tensor(FITS[bits]), (levels[1:] + levels[:-1]) / 2).flatten()
    channels = borders[torch.arange(head_dim) % len(borders)] * (1 - torch.arange(head_dim) % 2 * 2)
    return nudged(channels.repeat(2, 2, tokens, 1), LLOYD_LARGEST)


def nudged(rows, largest):
    """Token t is t % 9 - 4 units in the last place away; channel 0 is the largest."""
    rows.view(torch.int32).add_(torch.arange(rows.shape[2]).view(-1, 1) % 9 - 4)
    rows[..., 0] = largest
    return rows


def clips_that_tie(bits, tokens, head_dim):
    """Those of many rows whose two best clips fit most nearly alike: another order of a sum chooses the other one."""
    from int4kv.codebook import FITS, LLOYD, LLOYD_LARGEST, lane_sum

    x = torch.randn(20000, head_dim, generator=torch.Generator().manual_seed(bits))
    y = x * (LLOYD_LARGEST / x.abs().amax(-1, keepdim=True))
    upper = torch.tensor(LLOYD[bits], dtype=torch.float32)
    gains = []
    for fit in FITS[bits]:
        level = upper[torch.bucketize(y.abs() / fit, (upper[1:] + upper[:-1]) / 2, right=True)] * y.sign()
        gains.append(lane_sum(y * level) ** 2 / (level * level).sum(-1))
    best = torch.stack(gains).topk(2, dim=0).values
    return x[((best[0] - best[1]) / best[0]).argsort()[: 4 * tokens]].view(2, 2, tokens, head_dim)


def edge_calls(ops, device):
    cases = [("uniform", 4, on_the_edges(70, 64))]
    for bits in (3, 4, 5):
        cases += [("lloyd", bits, on_the_edges_of_lloyd(bits, 36, 128)), ("lloyd", bits, clips_that_tie(bits, 9, 128))]
    for codebook, bits, rows in cases:
        buffers = [t.to(device)[1:] for t in empty_row_buffers(rows.shape[-1], rows.shape[2], bits, 1)]
        ops.quantize(rows.to(device), *buffers, 0, codebook=codebook)
        yield from buffers


def paged_buffers(device, page_size, head_dim, bits=4):
    """Codes and scales of 12 pages for K and V, then two rings of 9 rows each."""
    sides = [t.to(device).transpose(1, 2) for _ in "kv" for t in (
        torch.zeros(12, 2, page_size, head_dim * bits // 8, dtype=torch.uint8), torch.zeros(12, 2, page_size, 1, dtype=torch.float16))]
    return sides, [torch.zeros(2, 9, 2, head_dim, dtype=torch.float16, device=device) for _ in "kv"]


def paged_calls(ops, device):
    """Sequences of 150, 0 and 70 tokens in pages, two of them with rings; a slot and table entries that do not exist."""
    from int4kv.rotation import hadamard_signs

    lengths, generator = (150, 0, 70), torch.Generator().manual_seed(4)
    for head_dim, page_size in ((64, 32), (128, 25), (256, 40), (96, 25)):
        signs = hadamard_signs(head_dim).to(device)
        rotations, (sides, rings) = dict(k_rotation=signs, v_rotation=signs), paged_buffers(device, page_size, head_dim)
        table = torch.randperm(12, generator=generator)[: 2 * -(-150 // page_size)].view(2, -1)[[0, 0, 1]].int()
        k, v = (torch.randn(220, 2, head_dim, generator=generator).to(device) for _ in "kv")
        token, row = torch.cat([torch.arange(150), torch.arange(70)]), torch.tensor([0] * 150 + [2] * 70)
        slots = table[row, token // page_size].long() * page_size + token % page_size
        newest = torch.where((token >= 141) | ((row == 2) & (token >= 61)), row // 2 * 9 + token % 9, -1)
        slots[5], newest[3] = (-1, -1) if device == "cpu" else (12 * page_size, 18)
        recent = dict(k_recent=rings[0], v_recent=rings[1])
        ops.quantize_paged(k, v, *sides, slots.to(device), **rotations, **recent, recent_slots=newest.to(device), codebook="lloyd")
        yield from (t.contiguous() for t in sides + rings)
        numbers = [torch.tensor(x, dtype=torch.int32).to(device) for x in (lengths, (0, 1, 1, 12), (0, -1, 1), (141, 0, 61))]
        recent |= dict(zip(("rings", "recent_starts"), numbers[2:]))
        for group, window in product((1, 3), (0, 40)):
            seen = table.clone()
            seen[0, : (150 - window) // page_size if window else 0] = 12  # behind the window, and some of them in its first tile
            q = torch.randn(12, 2 * group, head_dim, generator=generator).to(device)
            yield ops.attend_paged(q, *sides, seen.to(device), *numbers[:2], 11, head_dim**-0.5, **rotations, **recent, recent_window=5,
                                   window=window, codebook="lloyd")


def all_calls(device):
    """Yields every result, in order, as CPU tensors: the two devices must agree. On the CPU attention is the reference's, in fp32 throughout."""
    from int4kv import ops, reference, reference_paged

    if device == "cpu":
        ops = SimpleNamespace(quantize=ops.quantize, quantize_kv=ops.quantize_kv, dequantize=ops.dequantize, attend=reference.attend,
                              quantize_paged=ops.quantize_paged, attend_paged=reference_paged.attend_paged)
    for calls in (default_calls, recipe_calls, edge_calls, split_calls, step_calls, paged_calls):
        yield from (result.cpu() for result in calls(ops, device))


def disagreement(ours, theirs):
    """The first result that differs, what is stored in any bit and what is computed from it by more than rounding, or None."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        stored = a.dtype in (torch.uint8, torch.float16)
        if not torch.allclose(a.float(), b.float(), rtol=0, atol=0.0 if stored else 1e-5, equal_nan=True):
            return f"result {index}, {a.dtype} {list(a.shape)}: {(a.float() - b.float()).abs().max()} apart"
    return None


def prepare():
    """What the calls need whatever is mutated: a process that has it can be forked for many runs (rig/sandbox.py)."""
    from rig import device

    device.load()
    import int4kv  # noqa: F401  the ops' schemas

    torch.set_num_threads(1)


def check(mutated=None):
    """Raises AssertionError where mps and CPU disagree."""
    from rig import build, device

    sources = [p for p in build.project_ops() if mutated is None or p.name != mutated.name]
    folders = [f"-I{ROOT / 'csrc' / name}" for name in ("mps", "gpu")]
    device.load_ops(sources + ([mutated] if mutated else []), flags=("-fvisibility=hidden", *folders))
    found = disagreement(all_calls("mps"), all_calls("cpu"))
    assert found is None, found


if __name__ == "__main__":
    prepare()
    check(*(Path(a) for a in sys.argv[1:]))
