"""PagePool: sharing, copies before writes, room, and what is refused with nothing changed."""

import pytest
import torch
from devices import DEVICE, on_cpu, on_device
from tiny_models import tiny_gemma3, tiny_qwen2

import int4kv
from int4kv import ops
from int4kv.codebook import decode
from int4kv.paging import OutOfPages, OutOfRings
from int4kv.paging.pages import Pages

PAGE = 8


def pool(pages=16, sequences=4, model=None, **options):
    config = (model or tiny_qwen2(num_hidden_layers=1)).config
    return int4kv.PagePool(config, pages=pages, sequences=sequences, page_size=PAGE, device=DEVICE, **(dict(centre=None) | options))


def rows(tokens, heads, head_dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return on_device([torch.randn(tokens, heads, head_dim, generator=generator) for _ in range(2)])


def write(target, added, seed=0):
    """Append so many random tokens to each sequence, in every layer. Returns the keys."""
    step = target.append(added)
    heads, head_dim, _ = target.signature
    k, v = rows(step.tokens, heads, head_dim, seed)
    for layer in target.layers:
        layer.store(k, v, step)
    return k


def stored_keys(target, sequence, group=0):
    """Codes of all its tokens, decoded: [tokens, heads, head_dim]."""
    codes, scales = (on_cpu(x) for x in target.layers[target.groups[group].layers[0]].stored[:2])
    tokens, table = torch.arange(sequence.length), torch.tensor(sequence.tables[group].by_token())
    found = [x[table[tokens // PAGE], tokens % PAGE] for x in (codes, scales)]
    return decode(*found, target.signature[1], target.config.codebook)


def state(target):
    return [(list(group.pages.owners), group.memory.clone()) for group in target.groups] + [target.rings.free, target.rings.tensor.clone()]


def unchanged(target, before):
    *groups, free, rings = before
    same = [owners == group.pages.owners and torch.equal(memory, group.memory) for (owners, memory), group in zip(groups, target.groups)]
    return all(same) and free == target.rings.free and torch.equal(rings, target.rings.tensor)


def test_a_page_is_shared_until_it_is_written_on():
    target = pool()
    first = target.new()[0]
    write(target, [(first, 20)])
    second = target.fork(first)
    assert second.tables[0].pages == first.tables[0].pages and target.groups[0].pages.free == 13
    before = stored_keys(target, first)
    write(target, [(second, 3)], seed=1)
    assert second.tables[0].pages[:2] == first.tables[0].pages[:2] and second.tables[0].pages[2] != first.tables[0].pages[2]
    assert torch.equal(stored_keys(target, first), before) and torch.equal(stored_keys(target, second)[:20], before)
    target.free(first)
    assert torch.equal(stored_keys(target, second)[:20], before)
    target.free(second)
    assert target.groups[0].pages.free == 16 and target.rings.free == 4


def test_any_order_of_pages_reads_the_same():
    """Recycled pages, another order: codes are those of a fresh pool."""
    used, fresh = pool(), pool()
    gone = used.new(3)
    write(used, [(sequence, 17) for sequence in gone], seed=9)
    for sequence in gone[::2]:
        used.free(sequence)
    one, other = used.new()[0], fresh.new()[0]
    for tokens in (9, 1, 30):
        write(used, [(one, tokens)], seed=tokens)
        write(fresh, [(other, tokens)], seed=tokens)
    assert one.tables[0].pages != other.tables[0].pages
    assert torch.equal(stored_keys(used, one), stored_keys(fresh, other))


def test_sliding_layers_give_back_what_nobody_sees():
    target = pool(model=tiny_gemma3(), sequences=2, pages=32)
    sequence = target.new()[0]
    for t in range(200):
        write(target, [(sequence, 1)], seed=t)
    full, sliding = sequence.tables
    assert len(full.pages) == 25 and len(sliding.pages) <= -(-(24 + 32) // PAGE) + 1
    assert sliding.first * PAGE <= 200 - 24 - 32 + 1
    target.crop(sequence, 180)
    with pytest.raises(ValueError, match="crop to 100 of 180 tokens; a sliding window of 24 tokens keeps"):
        target.crop(sequence, 100)
    assert sequence.length == 180


def test_a_crop_does_not_bring_back_what_a_first_chunk_left_out():
    """Of 100 tokens at once a window of 24 and the rollback keep the last 55; the page that these start in has room for more."""
    target = pool(model=tiny_gemma3(), sequences=2, pages=32)
    sequence = target.new()[0]
    write(target, [(sequence, 100)])
    with pytest.raises(ValueError, match="crop to 67 of 100 tokens; a sliding window of 24 tokens keeps"):
        target.crop(sequence, 67)
    target.crop(target.fork(sequence), 68)
    assert sequence.length == 100


def test_out_of_pages_changes_nothing_and_harms_nobody():
    target = pool(pages=4)
    first, second = target.new(2)
    write(target, [(first, 20)])
    before, keys = state(target), stored_keys(target, first)
    with pytest.raises(OutOfPages, match="5 pages of 8 tokens are needed for layers with full attention and 1 of 4 are free"):
        target.append([(first, 1), (second, 40)])
    assert unchanged(target, before) and first.length == 20 and second.length == 0
    write(target, [(first, 1), (second, 2)], seed=1)
    assert torch.equal(stored_keys(target, first)[:20], keys)


def test_a_copy_that_has_no_room_is_refused_before_anything_is_written():
    target = pool(pages=3)
    first = target.new()[0]
    write(target, [(first, 20)])
    second = target.fork(first)
    before = state(target)
    with pytest.raises(OutOfPages, match="1 pages of 8 tokens are needed"):
        target.append([(second, 1)])
    assert unchanged(target, before)
    target.free(first)
    write(target, [(second, 1)])  # it is the only owner now


@pytest.mark.parametrize("act, message", [
    (lambda target, a: target.free(a), "sequence was freed before"),
    (lambda target, a: target.append([(a, 1)]), "sequence was freed before"),
    (lambda target, a: target.fork(a), "sequence was freed before"),
    (lambda target, a: target.crop(a, 0), "sequence was freed before"),
])
def test_a_freed_sequence_is_refused(act, message):
    target = pool()
    a, b = target.new(2)
    write(target, [(a, 9), (b, 9)])
    target.free(a)
    before = state(target)
    with pytest.raises(ValueError, match=message):
        act(target, a)
    assert unchanged(target, before)


def test_two_writers_of_one_page_are_refused():
    target = pool()
    a = target.new()[0]
    with pytest.raises(ValueError, match="a sequence is given twice in one step"):
        target.append([(a, 1), (a, 1)])
    pages = Pages(4)
    page = pages.take(1)[0]
    pages.share([page])
    with pytest.raises(ValueError, match=f"page {page} is written while 2 sequences own it"):
        pages.check_writable(page)


def test_a_page_is_freed_once():
    pages = Pages(2)
    taken = pages.take(2)
    pages.release(taken)
    with pytest.raises(ValueError, match="page 1 is freed and nobody owns it"):
        pages.release([1])
    with pytest.raises(ValueError, match=r"page 2 is shared; accepted: 0 .. 1"):
        pages.share([2])


def test_more_sequences_than_rings_are_refused():
    target = pool(sequences=2)
    target.new(1)
    with pytest.raises(OutOfRings, match="2 sequences are to be added and 1 of 2 are free"):
        target.new(2)
    assert target.rings.free == 1


@pytest.mark.cpu_only  # a GPU op does not read tables back
@pytest.mark.parametrize("change, message", [
    (dict(block_table=[[0, 99]]), "block_table has 99"),
    (dict(block_table=[[0, -2]]), "block_table has -2"),
    (dict(lengths=[17]), "lengths has 17"),
    (dict(rings=[7]), "rings has 7"),
])
def test_tables_that_point_outside_are_refused_by_the_op(change, message):
    target = pool()
    sequence = target.new()[0]
    write(target, [(sequence, 12)])
    values = dict(block_table=[sequence.tables[0].pages], lengths=[12], query_starts=[0, 1], rings=[sequence.ring], recent_starts=[0]) | change
    tensors = {name: torch.tensor(value, dtype=torch.int32) for name, value in values.items()}
    layer = target.layers[0]
    with pytest.raises(ValueError, match=message):
        ops.attend_paged(torch.randn(1, 4, 32), *layer.stored, max_queries=1, scale=1.0, k_recent=layer.rings[0], v_recent=layer.rings[1],
                         recent_window=1, codebook="lloyd", **tensors)


@pytest.mark.parametrize("options, message", [
    (dict(pages=0), "pages is 0; accepted: 1 or more"),
    (dict(sinks=4), "sinks is 4; accepted in pages: 0"),
    (dict(start=8), "start is 8; accepted in pages: 0"),
    (dict(max_cache_len=64), "max_cache_len is 64; accepted in pages: None"),
    (dict(skip_layers=(5,)), "skip_layers is"),
])
def test_what_pages_cannot_hold_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pool(**options)
