"""The ops among torch's own: in order without waiting, from threads, on views, in every mix of dtypes, far from zero."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from devices import DEVICE, TOLERANCE, on_cpu, on_device
from stored_rows import assert_close
from test_format import buffers, same_bits

from int4kv import ops, reference
from int4kv.rotation import hadamard_signs

SIGNS = hadamard_signs(64, DEVICE)
ROTATED = dict(k_rotation=SIGNS, v_rotation=SIGNS)
FILL = {torch.uint8: 0xEE, torch.bool: True}  # others: NaN


def numbers(*shape, seed=0, dtype=torch.float32):
    return on_device(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def two_sides(batch, heads, capacity, head_dim=64, recent=0, **options):
    """(k_codes, k_scales, v_codes, v_scales), dict(k_recent, v_recent)."""
    k, v = (buffers(batch, heads, capacity, head_dim, recent=recent, **options) for _ in range(2))
    return (*k[:2], *v[:2]), dict(k_recent=k[2], v_recent=v[2]) if recent else {}


def reference_quantize_kv(k, v, sides, position, recent=(None, None)):
    """quantize_kv with the rotation, on the CPU."""
    for x, stored, rows in ((k, sides[:2], recent[0]), (v, sides[2:], recent[1])):
        reference.quantize(x.cpu(), *stored, position, rotation=SIGNS.cpu(), recent=rows)


def all_same_bits(ours, theirs):
    return len(ours) == len(theirs) and all(same_bits(a, b) for a, b in zip(ours, theirs))


def agree_with_reference(ours, q, sides, *arguments, **options):
    q, sides, options = on_cpu((q, sides, options))
    exact_q = q.double() if q.dtype == torch.float32 else q
    exact = reference.attend(exact_q, *sides, *arguments, dtype=torch.float64, **options)
    assert_close(ours.cpu().double(), exact.double(), TOLERANCE[q.dtype])


# ---- in line with torch's own ops ------------------------------------------------------------------------------------


def decode_in_place(source, sides):
    """Decode q, k, v [3, steps, ...] through three tensors that are written just before and ruined just after every op."""
    kept = torch.zeros_like(source[0])
    q, k, v = (torch.zeros_like(x[0]) for x in source)
    for t in range(source.shape[1]):
        for x, new in zip((q, k, v), source[:, t]):
            x.copy_(new)
        ops.quantize_kv(k, v, *sides, t, **ROTATED)
        k.fill_(float("nan")), v.fill_(float("nan"))
        out = ops.attend(q, *sides, 0, t + 1, 0.125, **ROTATED)
        q.fill_(float("nan"))
        kept[t] = out
        out.fill_(float("nan"))
    return kept


def test_ops_wait_for_what_torch_writes_and_torch_waits_for_them():
    """Nothing synchronises on the way."""
    steps, (sides, _) = 40, two_sides(1, 2, 40)
    source = numbers(3, steps, 1, 2, 1, 64)
    kept = decode_in_place(source, sides)
    q, k, v, out = (x[:, 0, :, 0].transpose(0, 1).unsqueeze(0) for x in (*source, kept))
    expected, _ = on_cpu(two_sides(1, 2, steps))
    reference_quantize_kv(k, v, expected, 0)
    assert all_same_bits(sides, expected)
    agree_with_reference(out, q, expected, 0, steps, 0.125, **ROTATED)


def decode(seed, sides, recent, steps=30):
    """Some decoding steps; returns every output."""
    outputs = []
    for t in range(steps):
        q, k, v = (numbers(1, heads, 1, 64, seed=seed + 3 * t + i) for i, heads in enumerate((4, 2, 2)))
        ops.quantize_kv(k, v, *sides, t, **ROTATED, **recent)
        options = dict(recent_window=4, recent_start=max(0, t - 7), **ROTATED, **recent)
        outputs.append(ops.attend(q, *sides, 0, t + 1, 0.125, **options))
    return torch.cat(outputs, 2)


def test_threads_do_not_disturb_each_other():
    alone, together = ([two_sides(1, 2, 30, recent=8) for _ in range(2)] for _ in range(2))
    expected = [decode(1000 * i, *alone[i]) for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda i: decode(1000 * i, *together[i]), range(2)))
    assert all_same_bits(found, expected)
    assert all(all_same_bits(alone[i][0], together[i][0]) for i in range(2))


@pytest.mark.gpu_only
def test_tensors_left_on_the_cpu_are_named():
    sides, _ = two_sides(1, 2, 8)
    with pytest.raises(ValueError, match=f"q is on cpu; accepted is {DEVICE.type}:0, where the other tensors are"):
        ops.attend(torch.zeros(1, 2, 1, 64), *sides, 0, 8, 1.0)
    with pytest.raises(ValueError, match=f"k_centre is on cpu; accepted is {DEVICE.type}:0"):
        ops.quantize_kv(numbers(1, 2, 1, 64), numbers(1, 2, 1, 64), *sides, 0, k_centre=torch.zeros(1, 2, 64))


# ---- views -----------------------------------------------------------------------------------------------------------


def cut_out(x, spare):
    """(x as a view inside a larger tensor, that one): one spare index around it in every dimension, `spare` in the last."""
    shape = [n + 2 for n in x.shape[:-1]] + [x.shape[-1] + 2 * spare]
    whole = torch.full(shape, FILL.get(x.dtype, float("nan")), dtype=x.dtype, device=x.device)
    view = whole[(slice(1, -1),) * (x.dim() - 1) + (slice(spare, spare + x.shape[-1]),)]
    view.copy_(x)
    return view, whole


def cut_out_all(tensors, spare):
    views, wholes = zip(*(cut_out(t, spare) for t in tensors))
    return views, wholes


def assert_only_inside(view, whole):
    """Nothing outside the view was written."""
    view.fill_(FILL.get(view.dtype, float("nan")))
    assert (whole == FILL[whole.dtype]).all() if whole.dtype in FILL else whole.isnan().all()


@pytest.mark.parametrize("spare", [0, 3, 16])
def test_quantize_writes_inside_its_views_only(spare):
    k, v, centre = numbers(2, 2, 5, 64), numbers(2, 2, 5, 64, seed=1), numbers(2, 2, 64, seed=2)
    sides, recent = two_sides(2, 2, 9, recent=4)
    ops.quantize_kv(k, v, *sides, 6, k_centre=centre, **ROTATED, **recent)
    written, wholes = cut_out_all([torch.zeros_like(t) for t in (*sides, *recent.values())], spare)
    (k, v, centre, signs), _ = cut_out_all((k, v, centre, SIGNS), spare)
    options = dict(k_centre=centre, k_rotation=signs, v_rotation=signs, k_recent=written[4], v_recent=written[5])
    ops.quantize_kv(k, v, *written[:4], 6, **options)
    assert all_same_bits((*sides, *recent.values()), written)
    for view, whole in zip(written, wholes):
        assert_only_inside(view, whole)


@pytest.mark.parametrize("spare", [0, 3, 16])
@pytest.mark.parametrize("count", [1, 6])
def test_attend_reads_views(spare, count):
    k, v, q = numbers(2, 2, 20, 64), numbers(2, 2, 20, 64, seed=1), numbers(2, 6, count, 64, seed=2)
    sides, recent = two_sides(2, 2, 20, recent=12)
    ops.quantize_kv(k, v, *sides, 3, **ROTATED, **recent)
    mask, options = numbers(2, 6, count, 18, seed=3) > -1, dict(recent_start=11, recent_window=5)
    expected = ops.attend(q, *sides, 5, 23, 0.125, mask=mask, **ROTATED, **recent, **options)
    agree_with_reference(expected, q, sides, 5, 23, 0.125, mask=mask, **ROTATED, **recent, **options)
    (q, mask, signs, *held), _ = cut_out_all((q, mask, SIGNS, *sides, *recent.values()), spare)
    options |= dict(mask=mask, k_rotation=signs, v_rotation=signs, k_recent=held[4], v_recent=held[5])
    found = ops.attend(q, *held[:4], 5, 23, 0.125, **options)
    if DEVICE.type == "cuda":  # exact rows from which 16 bytes cannot be loaded are added up in another order
        assert_close(found, expected, TOLERANCE[q.dtype])
    else:
        assert same_bits(found, expected)


@pytest.mark.parametrize("spare", [0, 3, 16])
def test_dequantize_reads_views(spare):
    codes, scales = buffers(2, 2, 20, 64)
    ops.quantize(numbers(2, 2, 20, 64), codes, scales, 3)
    held, centre = (codes, scales, SIGNS), numbers(2, 2, 64, seed=4)
    (*views, apart), _ = cut_out_all((*held, centre), spare)
    read = [ops.dequantize(*x[:2], 5, 23, 64, centre=c, rotation=x[2]) for x, c in ((held, centre), (views, apart))]
    assert same_bits(*read)


def test_heads_as_models_lay_them_out():
    """q, k and v: slices of one projection [batch, tokens, (heads + 2 kv_heads) * head_dim], through view and transpose."""
    projected = numbers(2, 7, (6 + 2 + 2) * 64, dtype=torch.bfloat16)
    q, k, v = (x.view(2, 7, -1, 64).transpose(1, 2) for x in projected.split([6 * 64, 2 * 64, 2 * 64], dim=-1))
    (ours, _), (theirs, _) = two_sides(2, 2, 7), two_sides(2, 2, 7)
    ops.quantize_kv(k, v, *ours, 0, **ROTATED)
    ops.quantize_kv(k.contiguous(), v.contiguous(), *theirs, 0, **ROTATED)
    assert all_same_bits(ours, theirs)
    out = ops.attend(q, *ours, 0, 7, 0.125, **ROTATED)
    assert out.transpose(1, 2).is_contiguous()
    assert same_bits(out, ops.attend(q.contiguous(), *ours, 0, 7, 0.125, **ROTATED))


def test_broadcast_views():
    """Strides of 0: one centre, one query and one mask row for all."""
    k, centre = numbers(1, 1, 5, 64).expand(3, 2, -1, -1), numbers(1, 2, 64, seed=1)
    ours, theirs = buffers(3, 2, 5, 64), buffers(3, 2, 5, 64)
    ops.quantize(k, *ours, 0, centre=centre.expand(3, -1, -1), rotation=SIGNS)
    ops.quantize(k.contiguous(), *theirs, 0, centre=centre, rotation=SIGNS)
    assert all_same_bits(ours, theirs)
    q, mask = numbers(1, 1, 4, 64).expand(3, 4, -1, -1), (numbers(1, 1, 1, 5) > 0).expand(3, 4, 4, -1)
    expected = ops.attend(q.contiguous(), *ours, *ours, 0, 5, 0.125, mask=mask.contiguous(), causal=False)
    assert same_bits(ops.attend(q, *ours, *ours, 0, 5, 0.125, mask=mask, causal=False), expected)


def test_offsets_beyond_31_bits():
    """The second sequence lies 2.25 GiB behind the first; nothing reads or writes the memory between."""
    gap = 9 * 2**28
    far = torch.empty(gap + 2**16, dtype=torch.uint8, device=DEVICE).as_strided((2, 1, 8, 32), (gap, 256, 32, 1), 16)
    (near, scales), far_scales = buffers(2, 1, 8, 64), torch.zeros(2, 1, 8, 1, dtype=torch.float16, device=DEVICE)
    x, q = numbers(2, 1, 8, 64), numbers(2, 3, 1, 64, seed=1)
    ops.quantize(x, far, far_scales, 0, rotation=SIGNS)
    ops.quantize(x, near, scales, 0, rotation=SIGNS)
    assert all_same_bits((far, far_scales), (near, scales))
    assert same_bits(*(ops.attend(q, c, scales, c, scales, 0, 8, 0.125) for c in (far, near)))
    assert same_bits(*(ops.dequantize(c, scales, 0, 8, 64) for c in (far, near)))


# ---- mixes -----------------------------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("k_dtype, v_dtype, k_recent, v_recent", itertools.product(DTYPES, repeat=4))
def test_quantize_mixes_dtypes(k_dtype, v_dtype, k_recent, v_recent):
    k, v = numbers(1, 2, 5, 64, dtype=k_dtype), numbers(1, 2, 5, 64, seed=1, dtype=v_dtype)
    (ours, _), (theirs, _) = two_sides(1, 2, 6), on_cpu(two_sides(1, 2, 6))
    rows = [torch.zeros(1, 2, 3, 64, dtype=dtype, device=DEVICE) for dtype in (k_recent, v_recent)]
    kept = [torch.zeros_like(r, device="cpu") for r in rows]
    ops.quantize_kv(k, v, *ours, 4, k_recent=rows[0], v_recent=rows[1], **ROTATED)
    reference_quantize_kv(k, v, theirs, 4, kept)
    assert all_same_bits((*ours, *rows), (*theirs, *kept))


def one_side(dtype, seed):
    """(codes, scales) of 40 tokens: packed, or with a dtype plain rows."""
    side = buffers(2, 2, 40, 64)
    if dtype is not None:
        side = [torch.zeros(2, 2, 40, 64, dtype=dtype, device=DEVICE), side[1][..., :0]]
    ops.quantize(numbers(2, 2, 40, 64, seed=seed), *side, 0)
    return side


@pytest.mark.parametrize("k_dtype, v_dtype", itertools.product([None, *DTYPES], repeat=2))
@pytest.mark.parametrize("q_dtype, recent_dtype", zip(DTYPES, DTYPES[1:] + DTYPES[:1]))
@pytest.mark.parametrize("group, count", [(1, 1), (3, 1), (2, 5)])
def test_attend_mixes_dtypes(k_dtype, v_dtype, q_dtype, recent_dtype, group, count):
    """Packed or plain on either side, recent rows and queries of other dtypes."""
    sides = *one_side(k_dtype, 0), *one_side(v_dtype, 1)
    k_recent, v_recent = (numbers(2, 2, 16, 64, seed=seed, dtype=recent_dtype) for seed in (5, 6))
    options = dict(k_recent=k_recent, v_recent=v_recent, recent_start=24, recent_window=10)
    q = numbers(2, 2 * group, count, 64, seed=9, dtype=q_dtype)
    agree_with_reference(ops.attend(q, *sides, 0, 40, 0.125, **options), q, sides, 0, 40, 0.125, **options)


def test_keys_and_values_of_different_shapes():
    k, v = numbers(1, 2, 3, 64), numbers(1, 2, 5, 128, seed=1)
    both, apart = [buffers(1, 2, 6, 64) + buffers(1, 2, 6, 128) for _ in range(2)]
    ops.quantize_kv(k, v, *both, 0, k_rotation=SIGNS)
    ops.quantize(k, *apart[:2], 0, rotation=SIGNS)
    ops.quantize(v, *apart[2:], 0)
    assert all_same_bits(both, apart)


@pytest.mark.parametrize("batch, queries, keys", [(0, 1, 8), (2, 0, 8), (2, 1, 0), (2, 70, 0), (0, 0, 0)])
def test_nothing_to_do(batch, queries, keys):
    sides, recent = two_sides(batch, 2, 8, recent=4)
    ops.quantize_kv(numbers(batch, 2, 0, 64), numbers(batch, 2, 0, 64), *sides, 0, **ROTATED, **recent)
    assert all((t == 0).all() for t in (*sides, *recent.values()))
    options = dict(recent_start=8 - min(keys, 4), recent_window=4)
    out = ops.attend(numbers(batch, 6, queries, 64), *sides, 8 - keys, 8, 1.0, **options, **recent)
    assert out.shape == (batch, 6, queries, 64) and (keys > 0 or (out == 0).all())


# ---- far from zero ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 2**31 - 10, 2**32 - 10, 2**40 + 5])
@pytest.mark.parametrize("capacity, tokens", [(37, 37), (37, 20), (64, 33), (100, 100)])
def test_positions_wrap_around_the_ring_wherever_they_are(first, capacity, tokens):
    """What a sequence holds does not depend on how long it is already."""
    k, v, q = numbers(1, 2, tokens, 64), numbers(1, 2, tokens, 64, seed=1), numbers(1, 6, 3, 64, seed=2)
    (ours, rows), (theirs, kept) = (two_sides(1, 2, capacity, recent=11) for _ in range(2))
    theirs, kept = on_cpu((theirs, kept))
    ops.quantize_kv(k, v, *ours, first, **ROTATED, **rows)
    reference_quantize_kv(k, v, theirs, first, list(kept.values()))
    assert all_same_bits((*ours, *rows.values()), (*theirs, *kept.values()))
    begin, end = first + 1, first + tokens
    read = ops.dequantize(*ours[:2], begin, end, 64, rotation=SIGNS)
    assert same_bits(read, reference.dequantize(*theirs[:2], begin, end, 64, rotation=SIGNS.cpu()))
    options = dict(recent_start=end - 11, recent_window=6, window=15, **ROTATED)
    out = ops.attend(q, *ours, begin, end, 0.125, **rows, **options)
    agree_with_reference(out, q, theirs, begin, end, 0.125, **kept, **options)
