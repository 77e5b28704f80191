"""attend against the reference in float64, over shapes, masks, windows, rings and thresholds."""

import itertools

import pytest
import torch
from devices import DEVICE, TOLERANCE, on_device
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_rows import Stored, check, queries
from test_format import BITS, CODEBOOKS

from int4kv import ops
from int4kv.rotation import hadamard_signs


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
