"""quantize_paged and attend_paged: bit for bit what the contiguous ops do to each sequence alone, and the reference's results."""

import itertools

import pytest
import torch
from devices import DEVICE, TOLERANCE, on_cpu, on_device
from pages import Paged, int32, pool, random, side
from stored_rows import assert_close
from test_format import BITS, CODEBOOKS, same_bits

from int4kv import ops, reference_paged
from int4kv.rotation import hadamard_signs

PAGE_SIZES = [1, 5, 16, 32, 64]
LENGTHS, QUERIES = [40, 1, 70, 0, 33, 129, 64], [40, 1, 3, 0, 0, 1, 40]


def queries(counts, heads, head_dim, dtype=torch.float32):
    return [random(n, heads, head_dim, seed=50 + i).to(dtype) for i, n in enumerate(counts)]


def check(paged, counts, heads, dtype=torch.float32, **options):
    """All sequences in one call: their bits alone, and the reference's numbers.

    A GPU chooses its kernel by the most queries of a batch, so that there the bits are compared of batches of one.
    """
    q, sequences = queries(counts, heads, paged.head_dim, dtype), range(len(counts))
    found = paged.attend(q, sequences, **options)
    for s in sequences:
        if counts[s]:
            rows = found[s] if DEVICE.type == "cpu" else paged.attend([q[s]], [s], **options)[0]
            assert torch.equal(rows, paged.attend_alone(q[s], s, **options)), f"sequence {s}"
    arguments, named = on_cpu(paged.call(q, sequences, **options))
    exact_q = arguments[0].double() if dtype == torch.float32 else arguments[0]
    exact = reference_paged.attend_paged(exact_q, *arguments[1:], **named, dtype=torch.float64)
    assert_close(torch.cat(found).cpu().double(), exact.double(), TOLERANCE[dtype])
    return found


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_ragged_batches_over_pages_of_every_size(page_size, head_dim):
    group = 1 + (page_size + head_dim // 32) % 4
    paged = Paged(LENGTHS, head_dim=head_dim, page_size=page_size, rows=40 if head_dim % 64 else 0)
    check(paged, QUERIES, 2 * group, recent_window=8 if paged.rows else 0)


@pytest.mark.parametrize("window, softcap, recent, head_major", itertools.product([0, 7, 50], [0.0, 5.0], [0, 8], [True, False]))
def test_every_rule_together(window, softcap, recent, head_major):
    paged = Paged(LENGTHS, page_size=32 if recent else 16, rows=50 if recent else 0, head_major=head_major, centred=True)
    check(paged, QUERIES, 6, window=window, softcap=softcap, recent_window=recent)


@pytest.mark.parametrize("codebook", CODEBOOKS)
@pytest.mark.parametrize("bits", BITS)
def test_every_width_and_codebook(bits, codebook):
    widths = bits, BITS[(BITS.index(bits) + CODEBOOKS.index(codebook)) % len(BITS)]
    for heads, group_size in ((2, None), (8, 32)):
        paged = Paged([90, 33], head_dim=64, page_size=32, rows=20, bits=widths, codebook=codebook, group_size=group_size)
        check(paged, [1, 5], heads, recent_window=8)


def test_plain_rows_in_pages():
    check(Paged(LENGTHS, page_size=16, bits=(32, 32), codebook="uniform"), QUERIES, 4)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_every_dtype_and_stride_of_q(dtype):
    paged = Paged([70, 40], head_dim=128, page_size=32, rows=20)
    check(paged, [3, 1], 8, dtype, recent_window=8)
    q = torch.cat(queries([3, 1], 8, 128, dtype))
    expected = torch.cat(paged.attend(q.split([3, 1]), [0, 1]))
    for view in (q.transpose(0, 1).contiguous().transpose(0, 1), torch.stack([q, q], -1)[..., 1]):
        assert torch.equal(torch.cat(paged.attend(view.split([3, 1]), [0, 1])), expected)


@pytest.mark.parametrize("book, bits", itertools.product(CODEBOOKS, [(4, 4), (3, 8), (5, 4)]))
def test_codes_and_scales_are_the_references_bits(book, bits):
    """Of fp32 and bf16 tokens, some not stored; whatever is not a slot of theirs stays as it was."""
    k, v = random(30, 2, 64, seed=1), random(30, 2, 64, seed=2).bfloat16()
    order = torch.randperm(8 * 5, generator=torch.Generator().manual_seed(3))[:30]
    slots, recent_slots = order.clone(), order % 12
    slots[4:7], recent_slots[:] = -1, -1
    recent_slots[20:] = torch.randperm(12, generator=torch.Generator().manual_seed(4))[:10]
    ours = [t for b in bits for t in side(8, 5, 2, 64, b, book)] + [pool(3, 4, 2, 64, torch.float16) for _ in "kv"]
    theirs = on_cpu([t.clone() for t in ours])
    rotations = dict(k_rotation=hadamard_signs(64), v_rotation=hadamard_signs(64).view(4, 16))
    options = rotations | dict(k_centre=random(1, 2, 64, seed=5).cpu(), codebook=book)
    for quantize, stored, to in ((ops.quantize_paged, ours, on_device), (reference_paged.quantize_paged, theirs, on_cpu)):
        quantize(*to((k, v)), *stored[:4], to(slots), k_recent=stored[4], v_recent=stored[5], recent_slots=to(recent_slots), **to(options))
    assert all(same_bits(a, b) for a, b in zip(ours, theirs))


def test_a_result_is_the_same_in_every_batch():
    """To the bit on the CPU; a GPU chooses its splits by the batch."""
    paged = Paged([200, 40, 129, 70, 1], head_dim=128, page_size=32, rows=20)
    counts = [1, 3, 40, 1, 1]
    q = queries(counts, 6, 128)
    alone = [paged.attend([q[s]], [s], recent_window=8)[0] for s in range(5)]
    for order in ([4, 3, 2, 1, 0], [2, 0], [1, 4, 3]):
        for s, rows in zip(order, paged.attend([q[s] for s in order], order, recent_window=8)):
            assert_close(rows, alone[s], TOLERANCE[rows.dtype])
            assert DEVICE.type != "cpu" or torch.equal(rows, alone[s])


def test_pages_are_shared_by_a_prefix():
    """Two sequences whose first pages are the same ones, and whose tails are their own."""
    paged = Paged([64, 70, 75], page_size=16)
    for s in (1, 2):
        paged.tokens[s] = tuple(torch.cat([prefix[:48], own[48:]]) for prefix, own in zip(paged.tokens[0], paged.tokens[s]))
        paged.pages[s][:3] = paged.pages[0][:3]
        tail = torch.tensor(paged.slots(s)[48:], device=DEVICE)
        ops.quantize_paged(*(x[48:] for x in paged.tokens[s]), *paged.sides, tail, **paged.rotations, codebook=paged.codebook)
        paged.alone[s] = paged._alone(s)
    check(paged, [1, 3, 20], 4)


def test_pages_are_recycled_and_moved():
    """A freed sequence's pages serve another; pages copied elsewhere read the same."""
    paged = Paged([50, 60, 20], page_size=16)
    free = [p for p in range(paged.sides[0].shape[0]) if p not in sum(paged.pages, [])]
    for stored in paged.sides:
        stored[free[0]] = stored[paged.pages[0][1]]
    paged.pages[0][1], given_up = free[0], paged.pages[0][1]
    paged.pages[2] = [given_up, paged.pages[1].pop()]
    paged.lengths[1:], paged.tokens[1] = [48, 20], tuple(x[:48] for x in paged.tokens[1])
    paged.write([2])
    paged.alone = [paged._alone(s) for s in range(3)]
    check(paged, [3, 1, 20], 4)


def test_freed_pages_behind_a_window_and_unread_entries_may_be_anything():
    paged = Paged([100, 40], page_size=16, rows=32)
    expected = check(paged, [2, 1], 4, window=30, recent_window=8)
    q = queries([2, 1], 4, 64)
    paged.pages[0][:4] = [-1, 10**6, -7, 2**31 - 1]
    for ours, theirs in zip(paged.attend(q, [0, 1], window=30, recent_window=8), expected):
        assert torch.equal(ours, theirs) and ours.isfinite().all()


def test_a_sequence_without_a_ring_reads_codes():
    paged, without = (Paged([40, 70], page_size=16, rows=rows) for rows in (32, 0))
    q = queries([1, 3], 4, 64)
    with_ring, _ = paged.attend(q, [0, 1], recent_window=8)
    found = paged.attend(q, [0, 1], recent_window=8, rings=int32([paged.rings[0], -1]))
    assert torch.equal(found[0], with_ring) and torch.equal(found[1], without.attend(q, [0, 1])[1])


def test_sequences_of_nothing():
    paged = Paged([40, 20], page_size=16)
    q = queries([2, 0], 4, 64)
    assert [len(rows) for rows in paged.attend(q, [0, 1])] == [2, 0]
    arguments, options = paged.call(queries([2, 3], 4, 64), [0, 1], lengths=[0, 20])
    found = ops.attend_paged(*arguments, **options)
    assert (found[:2] == 0).all() and (found[2:] != 0).any()
    none = (torch.zeros(0, 4, 64, device=DEVICE), *paged.sides, int32([]).view(0, 1), int32([]), int32([0]), 0, 1.0)
    assert ops.attend_paged(*none, codebook="lloyd").shape == (0, 4, 64)
    empty = torch.zeros(0, 2, 64, device=DEVICE)
    ops.quantize_paged(empty, empty, *paged.sides, torch.zeros(0, dtype=torch.int64, device=DEVICE), codebook="lloyd")


@pytest.mark.cpu_only
def test_rows_of_no_sequence_are_zero():
    paged = Paged([40], page_size=16)
    arguments, options = paged.call(queries([5], 4, 64), [0])
    found = ops.attend_paged(*arguments[:7], int32([1, 3]), *arguments[8:], **options)
    assert (found[[0, 3, 4]] == 0).all() and (found[1:3] != 0).all()


@pytest.mark.parametrize("heads, window", [(1, 0), (4, 0), (6, 700)])
def test_long_sequences_are_split_as_they_are_alone(heads, window):
    """Beside short and empty ones, which have fewer splits than the batch."""
    check(Paged([2000, 70, 900, 0, 640], heads=1, page_size=32, rows=64), [1, 1, 3, 0, 1], heads, recent_window=32, window=window)


@pytest.mark.cpu_only
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_splits_are_those_of_a_sequence_alone(threads):
    """With every number of threads: the bits of attend with as many, whatever else is in the batch."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check(Paged([2000, 70, 900, 0, 640], head_dim=128, heads=1, page_size=32, rows=64), [1, 40, 3, 0, 1], 4, recent_window=32)
    finally:
        torch.set_num_threads(before)
