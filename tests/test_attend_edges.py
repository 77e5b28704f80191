"""attend at the edges: views, peaky softmax, rows that see nothing, NaN, what must not be read, empty and bad input."""

import pytest
import torch
from devices import DEVICE, TOLERANCE, on_device
from stored_rows import Stored, check, queries

from int4kv import ops


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_strides_offsets_and_dtypes_of_q(dtype):
    stored = Stored(2, 2, 64, 0, 70, 70)
    q = queries(2, 6, 3, 64, dtype=dtype)
    expected = check(stored, q, 0, 70)
    for view in (q.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([q, q], 2)[:, :, 3:], torch.stack([q, q], -1)[..., 0]):
        assert torch.equal(ops.attend(view, *stored.sides, 0, 70, 64**-0.5, **stored.options), expected)


def test_cache_views_with_offsets():
    stored = Stored(1, 2, 64, 0, 70, 70)
    q = queries(1, 4, 1, 64)
    expected = check(stored, q, 0, 70)
    wide = [torch.cat([torch.full_like(t, 7), t, torch.full_like(t, 7)], 2)[:, :, 70:140] for t in stored.sides]
    assert torch.equal(ops.attend(q, *wide, 0, 70, 64**-0.5, **stored.options), expected)


@pytest.mark.parametrize("logits", [1.0, 16.0, 60.0, 1e4])
def test_peaky_softmax(logits):
    check(Stored(1, 1, 128, 0, 600, 600, logits=logits), queries(1, 4, 1, 128), 0, 600, scale=1.0)


@pytest.mark.parametrize("rows", [0, 8])
@pytest.mark.parametrize("group", [1, 4])
def test_scores_that_are_all_far_below_zero(group, rows):
    stored = Stored(1, 1, 128, 0, 600, 600, rows=rows)
    k = stored.k[:, :, :1].expand(-1, -1, 600, -1).contiguous()
    recent = dict(k_recent=stored.k_side[2], v_recent=stored.v_side[2]) if rows else {}
    ops.quantize_kv(k, stored.v, *stored.sides, 0, k_rotation=stored.signs, v_rotation=stored.signs, **recent)
    q = -4 * k[:, :, :1].expand(-1, group, -1, -1)
    assert check(stored, q, 0, 600, scale=1.0, recent_window=rows).isfinite().all()


def test_rows_that_see_nothing_are_zero():
    stored = Stored(2, 1, 64, 0, 40, 40, rows=8)
    mask = torch.ones(2, 1, 3, 40, dtype=torch.bool, device=DEVICE)
    mask[0, :, 1] = False
    out = check(stored, queries(2, 2, 3, 64), 0, 40, mask=mask, causal=False, recent_window=8)
    assert (out[0, :, 1] == 0).all() and (out[1, :, 1] != 0).any()
    assert (ops.attend(queries(2, 2, 3, 64), *stored.sides, 40, 40, 1.0) == 0).all()


@pytest.mark.parametrize("where", [3, 38])
def test_nan_reaches_those_who_see_it_and_no_one_else(where):
    stored = Stored(1, 1, 64, 0, 40, 40, rows=8)
    broken = stored.v.clone()
    broken[0, 0, where] = float("nan")
    ops.quantize_kv(stored.k, broken, *stored.sides, 0, k_rotation=stored.signs, v_rotation=stored.signs,
                    k_recent=stored.k_side[2], v_recent=stored.v_side[2])
    mask = torch.ones(1, 1, 2, 40, dtype=torch.bool, device=DEVICE)
    mask[..., 0, where] = False
    out = check(stored, queries(1, 1, 2, 64), 0, 40, mask=mask, causal=False, recent_window=8)
    assert out[0, 0, 0].isfinite().all() and out[0, 0, 1].isnan().all()


@pytest.mark.parametrize("group, count, window", [(1, 1, 0), (1, 1, 20), (3, 1, 20), (2, 5, 12), (4, 5, 0)])
def test_what_lies_outside_is_not_read(group, count, window):
    """NaN before start, before the window, in free slots and in the ring's stale rows."""
    stored = Stored(1, 2, 64, 0, 70, 128, rows=40)
    for t in stored.sides[1], stored.sides[3]:
        t[:, :, :10], t[:, :, 70:] = float("nan"), float("nan")
    for rows in stored.options["k_recent"], stored.options["v_recent"]:
        rows[:, :, torch.arange(30, 70 - 8 - count) % 40] = float("nan")
    if window:
        for t in stored.sides[1], stored.sides[3]:
            t[:, :, : 71 - count - window] = float("nan")
    assert check(stored, queries(1, 2 * group, count, 64), 10, 70, window=window, recent_window=8).isfinite().all()


def test_exact_rows_are_read_where_they_are_due():
    """With a ring and codes that contradict it, each query reads exactly its own newest rows."""
    stored = Stored(1, 1, 32, 0, 30, 30, rows=16, plain=True)
    stored.v_side[0].fill_(0.0)
    stored.v_side[2].fill_(1.0)
    out = ops.attend(torch.zeros(1, 1, 4, 32, device=DEVICE), *stored.sides, 0, 30, 1.0, recent_window=5, **stored.options)
    position = torch.arange(26, 30)
    assert torch.allclose(out[0, 0, :, 0].cpu(), 5.0 / (position + 1))


def test_empty_batches_and_queries():
    stored = Stored(1, 2, 64, 0, 8, 8)
    assert ops.attend(torch.zeros(1, 4, 0, 64, device=DEVICE), *stored.sides, 0, 8, 1.0).shape == (1, 4, 0, 64)
    none = [t[:0] for t in stored.sides]
    assert ops.attend(torch.zeros(0, 4, 1, 64, device=DEVICE), *none, 0, 8, 1.0).shape == (0, 4, 1, 64)


@pytest.mark.cpu_only
def test_threads_change_nothing_but_rounding():
    stored = Stored(1, 1, 128, 0, 2000, 2000)
    q, before = queries(1, 4, 1, 128), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(check(stored, q, 0, 2000))
    finally:
        torch.set_num_threads(before)
    assert all(torch.allclose(r, results[0], atol=1e-6) for r in results)


BAD = [
    (dict(q=torch.zeros(1, 2, 1, 64, dtype=torch.long)), TypeError, "q has dtype Long"),
    (dict(q=torch.zeros(2, 1, 64)), ValueError, r"q has shape \[2, 1, 64\]"),
    (dict(q=torch.zeros(1, 3, 1, 64)), ValueError, "q has 3 heads; accepted are multiples of num_key_value_heads, 2"),
    (dict(q=torch.zeros(2, 2, 1, 64)), ValueError, "q has batch size 2; accepted is that of k_codes, 1"),
    (dict(q=torch.zeros(1, 2, 1, 128)), ValueError, "k_codes has 32 bytes for head_dim 128"),
    (dict(end=9), ValueError, "spans 9 tokens; accepted are up to the capacity, 8"),
    (dict(start=5, end=3), ValueError, "start is 5 and end is 3"),
    (dict(mask=torch.zeros(1, 1, 1, 7, dtype=torch.bool)), ValueError, "mask has 7 keys; accepted is end - start, 8"),
    (dict(mask=torch.zeros(1, 1, 1, 8)), TypeError, r"mask has dtype Float; accepted is bool"),
    (dict(mask=torch.zeros(1, 3, 1, 8, dtype=torch.bool)), ValueError, r"mask has shape \[1, 3, 1, 8\]"),
    (dict(window=-1), ValueError, "window is -1"),
    (dict(softcap=-1.0), ValueError, "softcap is -1"),
    (dict(k_recent=torch.zeros(1, 2, 4, 64)), ValueError, "k_recent is given and v_recent is None"),
    (dict(k_recent=torch.zeros(1, 2, 4, 64), v_recent=torch.zeros(1, 2, 4, 64)), ValueError, "recent_start is 0 with end 8"),
    (dict(k_rotation=torch.ones(32)), ValueError, r"k_rotation has shape \[32\]"),
    (dict(codebook="x"), ValueError, "codebook is 'x'"),
]


@pytest.mark.parametrize("change, error, message", BAD)
def test_bad_input_is_named(change, error, message):
    stored = Stored(1, 2, 64, 0, 8, 8)
    names = ("k_codes", "k_scales", "v_codes", "v_scales")
    good = dict(q=torch.zeros(1, 2, 1, 64), start=0, end=8, scale=1.0) | dict(zip(names, stored.sides))
    with pytest.raises(error, match=message):
        ops.attend(**on_device(good | change))
