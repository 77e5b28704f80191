"""attend against the reference in float64, over shapes, masks, windows, rings, strides and thresholds."""

import itertools

import pytest
import torch
from devices import DEVICE, TOLERANCE, on_cpu, on_device
from hypothesis import given, settings
from hypothesis import strategies as st
from test_format import BITS, CODEBOOKS, buffers

from int4kv import ops, reference
from int4kv.rotation import hadamard_signs


class Stored:
    """Random keys and values behind quantize_kv, tokens first .. end of a ring of the given capacity."""

    def __init__(self, batch, heads, head_dim, first, end, capacity, rows=0, group_size=None, seed=0, plain=False, logits=1.0,
                 bits=(4, 4), codebook="uniform", sinks=0, centred=False):
        generator = torch.Generator().manual_seed(seed)
        self.k, self.v = (torch.randn(batch, heads, end - first, head_dim, generator=generator) for _ in range(2))
        self.k, self.v = on_device((self.k * logits, self.v))
        self.signs, self.first, self.end = None if plain else hadamard_signs(head_dim, DEVICE), first, end
        self.k_side, self.v_side = (self._side(batch, heads, head_dim, capacity, rows, group_size, plain, b, codebook) for b in bits)
        self.v_centre = self.v.mean(2) if centred else None
        self.codebook, written = codebook, dict(k_rotation=self.signs, v_rotation=self.signs, v_centre=self.v_centre)
        recent = dict(k_recent=self.k_side[2], v_recent=self.v_side[2]) if rows else {}
        for t in range(first, end, capacity):
            piece = slice(t - first, min(t + capacity, end) - first)
            ops.quantize_kv(self.k[:, :, piece], self.v[:, :, piece], *self.sides, t, codebook=codebook, **written, **recent)
        self.options = written | dict(recent_start=max(first, end - rows) if rows else 0, codebook=codebook) | recent
        if sinks:
            self.options |= dict(zip(("k_sink", "v_sink"), self._first_rows(sinks, written)))

    def _first_rows(self, sinks, written):
        plain = [x.new_zeros(*x.shape[:2], sinks, x.shape[3]).half() for x in (self.k, self.v)]
        n = max(min(sinks - self.first, self.k.shape[2]), 0)
        none = plain[0][..., :0]
        ops.quantize_kv(self.k[:, :, :n], self.v[:, :, :n], plain[0], none, plain[1], none, self.first, **written)
        return plain

    def _side(self, batch, heads, head_dim, capacity, rows, group_size, plain, bits, codebook):
        side = buffers(batch, heads, capacity, head_dim, group_size, rows, bits, codebook)
        if plain:
            side[:2] = [torch.zeros(batch, heads, capacity, head_dim, device=DEVICE), side[1][..., :0]]
        return side

    @property
    def sides(self):
        return *self.k_side[:2], *self.v_side[:2]


def check(stored, q, start, end, scale=None, **options):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    options = stored.options | options
    ours = ops.attend(q, *stored.sides, start, end, scale, **options)
    assert ours.dtype == q.dtype and ours.shape == q.shape
    q, sides, options = on_cpu((q, stored.sides, options))
    exact_q = q.double() if q.dtype == torch.float32 else q
    exact = reference.attend(exact_q, *sides, start, end, scale, dtype=torch.float64, **options)
    assert_close(ours.cpu().double(), exact.double(), TOLERANCE[q.dtype])
    return ours


def assert_close(ours, exact, tolerance):
    assert torch.equal(ours.isnan(), exact.isnan())
    error = (ours - exact).abs().nan_to_num(0).max() / exact.abs().nan_to_num(0).max().clamp_min(1e-9)
    assert error < tolerance, error


def queries(*shape, seed=9, dtype=torch.float32):
    return on_device(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 12, 33])
def test_every_group_size_and_head_dim(head_dim, group):
    stored = Stored(2, 2, head_dim, 0, 90, 90)
    check(stored, queries(2, 2 * group, 1, head_dim), 0, 90)
    check(stored, queries(2, 2 * group, 5, head_dim), 0, 90)


# On the CPU kTile is 64 keys, kBlockRows 8 and kItemRows 32 rows, kParallelTiles 512 keys: each and its neighbours.
@pytest.mark.parametrize("keys", [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1100])
@pytest.mark.parametrize("count", [1, 4, 5, 15, 16, 17, 32, 33])
def test_every_threshold(keys, count):
    stored = Stored(1, 1, 64, 0, keys, keys)
    check(stored, queries(1, 2, min(count, keys), 64), 0, keys)


# On mps a block has 1, 2 or 8 rows (heads of a group times queries), from 3 rows on another kernel takes over, a split has 256 keys.
GROUPS = [1, 2, 3, 4, 5, 6, 7, 8, 12]
COUNTS = [1, 2, 3, 4, 5, 8, 9, 17, 33, 70]
LENGTHS = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 513, 1025]


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("group", GROUPS)
def test_every_route(group, head_dim):
    """Every group, head_dim and count of queries; over all of these tests each count meets each length."""
    first = 4 * GROUPS.index(group) + head_dim // 64
    for i, count in enumerate(COUNTS):
        keys, dtype = LENGTHS[(first + 3 * i) % len(LENGTHS)], list(TOLERANCE)[i % 3]
        check(Stored(1, 1, head_dim, 5, 5 + keys, keys + 3), queries(1, group, count, head_dim, dtype=dtype), 5, 5 + keys)


@pytest.mark.parametrize("keys, window", [(1024, 0), (5000, 0), (5000, 700), (5000, 30)])
@pytest.mark.parametrize("group, head_dim", [(1, 64), (2, 96), (1, 256), (3, 128), (7, 128)])
def test_long_sequences_are_split_among_cores(group, head_dim, keys, window):
    stored = Stored(1, 1, head_dim, 0, keys, keys, rows=40)
    check(stored, queries(1, group, 1, head_dim), 0, keys, window=window, recent_window=32)


@pytest.mark.parametrize("group_size", [None, 32, 64])
@pytest.mark.parametrize("head_dim, group, count", itertools.product([64, 128, 256], [1, 2, 4], [1, 5]))
def test_every_number_of_scales(head_dim, group, count, group_size):
    stored = Stored(2, 2, head_dim, 7, 77, 80, rows=20, group_size=group_size)
    check(stored, queries(2, 2 * group, count, head_dim), 7, 77, recent_window=8)


@pytest.mark.parametrize("codebook", CODEBOOKS)
@pytest.mark.parametrize("bits", itertools.product(BITS, BITS))
def test_every_width_and_codebook(bits, codebook):
    """K and V apart; every head_dim, group and count of queries among the combinations."""
    n = 4 * bits[0] + bits[1] + CODEBOOKS.index(codebook)
    for head_dim, group, count in ((64, 1 + n % 3, 1), (128, 4 + n % 4, 1 + 4 * (n % 2)), (256, 1 + n % 6, 1), (96, 2, 3)):
        stored = Stored(2, 2, head_dim, 7, 77, 80, rows=20, bits=bits, codebook=codebook)
        check(stored, queries(2, 2 * group, count, head_dim), 7, 77, recent_window=8, window=n % 2 * 50)


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_groups_of_every_codebook(codebook):
    for head_dim, group_size in ((64, 32), (128, 32), (128, 64), (256, 128)):
        stored = Stored(1, 2, head_dim, 0, 70, 70, group_size=group_size, bits=(5, 3), codebook=codebook)
        check(stored, queries(1, 6, 2, head_dim), 0, 70)


@pytest.mark.parametrize("group, count", [(1, 1), (2, 1), (4, 1), (3, 5)])
@pytest.mark.parametrize("first, sinks, keys", [(0, 4, 70), (0, 1, 70), (3, 8, 70), (0, 40, 20), (20, 8, 40), (0, 6, 1500)])
def test_sinks_are_read_exactly(first, sinks, keys, group, count):
    """Also when attention starts behind them, when all is a sink, and when the tokens are split."""
    for head_dim in (64, 96, 128):
        stored = Stored(2, 2, head_dim, first, first + keys, keys + 3, rows=12, sinks=sinks, codebook="lloyd", bits=(4, 3))
        check(stored, queries(2, 2 * group, count, head_dim), first, first + keys, recent_window=5)


@pytest.mark.parametrize("group, count, keys", [(1, 1, 40), (4, 1, 40), (2, 6, 40), (1, 1, 2000), (6, 1, 2000)])
def test_the_centre_of_values_is_added_once(group, count, keys):
    stored = Stored(2, 2, 128, 0, keys, keys, rows=10, centred=True, codebook="lloyd")
    mask = torch.ones(2, 1, count, keys, dtype=torch.bool)
    mask[1, :, 0] = False  # a query that sees nothing stays 0
    out = check(stored, queries(2, 2 * group, count, 128), 0, keys, recent_window=4, mask=on_device(mask), causal=False)
    assert (out[1, :, 0] == 0).all()


@pytest.mark.parametrize("block", [2, 16, 32, 64, 128])
def test_rotations_in_blocks(block):
    stored = Stored(1, 2, 128, 0, 50, 50, plain=True)
    rotations = dict(k_rotation=hadamard_signs(128, DEVICE).view(-1, block), v_rotation=hadamard_signs(128, DEVICE).view(-1, block))
    ops.quantize_kv(stored.k, stored.v, *stored.sides, 0, **rotations)
    stored.options |= rotations
    for group in (1, 4):
        check(stored, queries(1, 2 * group, 2, 128), 0, 50)


@pytest.mark.parametrize("head_dim, group, count", itertools.product([32, 96, 128, 256], [1, 2, 4], [1, 5]))
def test_plain_rows(head_dim, group, count):
    stored = Stored(2, 2, head_dim, 7, 77, 80, rows=20, plain=True)
    check(stored, queries(2, 2 * group, count, head_dim), 7, 77, recent_window=8, window=50, softcap=10.0)


@pytest.mark.parametrize("head_dim, group", itertools.product([32, 96, 128, 256], [1, 4]))
def test_all_rules_at_every_head_dim(head_dim, group):
    stored = Stored(2, 2, head_dim, 50, 140, 100, rows=60)
    mask = on_device(torch.rand(2, 1, 6, 80, generator=torch.Generator().manual_seed(3)) > 0.3)
    check(stored, queries(2, 2 * group, 6, head_dim), 60, 140, window=40, softcap=5.0, recent_window=8, mask=mask)


@pytest.mark.parametrize("batch, heads, count", itertools.product([1, 2], [1, 6], [1, 5]))
def test_every_broadcast_of_the_mask(batch, heads, count):
    mask = on_device(torch.rand(batch, heads, count, 40, generator=torch.Generator().manual_seed(3)) > 0.4)
    for group in (1, 3):
        check(Stored(2, 2, 64, 0, 40, 40), queries(2, 2 * group, 5, 64), 0, 40, mask=mask[:, : 2 * group], causal=False)


@pytest.mark.parametrize("causal, window, softcap, recent, masked, count", itertools.product(
    [True, False], [0, 7, 40], [0.0, 5.0], [0, 1, 8], [False, True], [1, 6, 40]))
def test_every_rule_together(causal, window, softcap, recent, masked, count):
    stored = Stored(2, 2, 64, 50, 140, 100, rows=60)
    mask = on_device(torch.rand(2, 1, count, 80, generator=torch.Generator().manual_seed(3)) > 0.3) if masked else None
    check(stored, queries(2, 6, count, 64), 60, 140, causal=causal, window=window, softcap=softcap, recent_window=recent, mask=mask)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_random_shapes(data):
    draw = lambda strategy: data.draw(strategy)  # noqa: E731
    head_dim = draw(st.sampled_from([32, 64, 96, 128, 160, 256]))
    group_size = draw(st.sampled_from([None, 32, 64]))
    group_size = group_size if group_size and head_dim % group_size == 0 else None
    first, length, rows = draw(st.integers(0, 50)), draw(st.integers(1, 120)), draw(st.integers(0, 40))
    end = first + length
    stored = Stored(draw(st.integers(1, 2)), draw(st.integers(1, 3)), head_dim, first, end, length + draw(st.integers(0, 30)),
                    rows, group_size, plain=draw(st.booleans()), seed=draw(st.integers(0, 99)))
    batch, heads = stored.k.shape[:2]
    count, start = draw(st.integers(1, 50)), draw(st.integers(first, end))
    q = queries(batch, heads * draw(st.integers(1, 7)), count, head_dim, dtype=draw(st.sampled_from(list(TOLERANCE))))
    shape = [draw(st.sampled_from([1, n])) for n in (batch, q.shape[1], count)] + [end - start]
    mask = on_device(torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.4) if draw(st.booleans()) else None
    check(stored, q, start, end, mask=mask, causal=draw(st.booleans()), window=draw(st.sampled_from([0, 1, 13, 1000])),
          recent_window=draw(st.integers(0, 50)), softcap=draw(st.sampled_from([0.0, 3.0])))


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
