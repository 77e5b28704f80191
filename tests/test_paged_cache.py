"""Int4PagedCache under generate: the tokens of Int4Cache, whatever happens to the rows."""

from itertools import product

import pytest
import torch
from cached_layers import chunk
from devices import DEVICE
from tiny_models import random_ids
from transformers.cache_utils import DynamicCache

import int4kv
from int4kv.naming import as_argument

OPTIONS = dict(do_sample=False, max_new_tokens=20)


def paged(model, rows=4, **overrides):
    pool = int4kv.PagePool(model.config, pages=128, sequences=rows, page_size=8, device=DEVICE, **overrides)
    return pool, int4kv.Int4PagedCache(pool)


def continued(model, cache, ids, **options):
    return model.generate(ids, **as_argument(cache), **(OPTIONS | options))


def padded(side):
    """Rows of 40, 90 and 3 tokens with their mask."""
    ids, mask = random_ids(3, 90), torch.ones(3, 90, dtype=torch.long, device=DEVICE)
    for row, tokens in enumerate((40, 90, 3)):
        gone = slice(0, 90 - tokens) if side == "left" else slice(tokens, 90)
        ids[row, gone], mask[row, gone] = 0, 0
    return ids, mask


RECIPES = [dict(), dict(bits=(8, 3)), dict(recent=0), dict(prefill="packed"), dict(bits=16), dict(layer_bits={0: 8}, skip_layers=(-1,)),
           dict(v_centre="prompt"), dict(codebook="asymmetric", group_size=32)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_generate_gives_the_tokens_of_the_contiguous_cache(model, recipe):
    int4kv.patch(model, **recipe)
    ids = random_ids(1, 70)
    _, cache = paged(model, **recipe)
    assert torch.equal(continued(model, cache, ids), continued(model, None, ids))
    assert cache.lengths == [89]


def test_beams(model):
    int4kv.patch(model)
    ids = random_ids(1, 50)
    pool, cache = paged(model)
    assert torch.equal(continued(model, cache, ids, num_beams=4), continued(model, None, ids, num_beams=4))
    cache.free()
    assert all(group.pages.free == group.pages.count for group in pool.groups) and pool.rings.free == 4


def test_assisted_decoding_crops(model, assistant):
    """Accepted and rejected tokens, chunks of several: with everything packed the tokens are those of one at a time."""
    int4kv.patch(model, prefill="packed")
    int4kv.patch(assistant)
    ids = random_ids(1, 60)
    _, cache = paged(model, prefill="packed")
    assert torch.equal(continued(model, cache, ids, assistant_model=assistant), continued(model, None, ids))


def test_left_padding_takes_no_room(model):
    int4kv.patch(model, centre=None)
    ids, mask = padded("left")
    _, cache = paged(model, centre=None)
    found, expected = (continued(model, c, ids, attention_mask=mask) for c in (cache, None))
    assert torch.equal(found, expected) and cache.lengths == [59, 109, 22]


@torch.no_grad()
def test_right_padding_is_that_row_alone(model):
    int4kv.patch(model, centre=None)
    ids, mask = padded("right")
    _, cache = paged(model, centre=None)
    model(ids, attention_mask=mask, **as_argument(cache))
    next_ids, positions = random_ids(3, 1, seed=2), mask.sum(dim=1, keepdim=True)
    together = model(next_ids, attention_mask=torch.cat([mask, torch.ones_like(next_ids)], 1), position_ids=positions, **as_argument(cache))
    for row, tokens in enumerate((40, 90, 3)):
        _, alone = paged(model, centre=None)
        model(ids[row : row + 1, :tokens], **as_argument(alone))
        logits = model(next_ids[row : row + 1], **as_argument(alone)).logits
        assert torch.allclose(together.logits[row].cpu(), logits[0].cpu(), atol=2e-3)


@torch.no_grad()
def test_rows_leave_join_and_are_cropped_alone(model):
    """Each row goes on as if it had been alone."""
    int4kv.patch(model, centre=None)
    pool, cache = paged(model, centre=None)
    lengths, ids = (40, 90, 17), random_ids(4, 120)
    for row, tokens in enumerate(lengths):
        joining = int4kv.Int4PagedCache(pool)
        model(ids[row : row + 1, :tokens], **as_argument(joining))
        cache.join(joining)
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.crop_rows([17, 33])
    assert cache.lengths == [17, 33] and pool.rings.free == 2
    positions = torch.tensor([[17], [33]], device=DEVICE)
    together = model(random_ids(2, 1, seed=3), position_ids=positions, **as_argument(cache)).logits
    for place, (row, tokens, read) in enumerate(((2, 17, 17), (0, 33, 40))):
        alone = int4kv.Int4PagedCache(pool)
        model(ids[row : row + 1, :read], **as_argument(alone))
        alone.crop(tokens - read)
        logits = model(random_ids(2, 1, seed=3)[place : place + 1], **as_argument(alone)).logits
        assert torch.allclose(together[place].cpu(), logits[0].cpu(), atol=2e-3)


@torch.no_grad()
def test_a_reorder_of_long_beams_moves_a_ring_and_no_page():
    """3 beams of 2000 tokens: 2 % at most of the fp cache, which a DynamicCache copies whole."""
    from tiny_models import tiny_qwen2

    model = int4kv.patch(tiny_qwen2())
    pool = int4kv.PagePool(model.config, pages=400, sequences=4, page_size=16, device=DEVICE)
    paged, fp = int4kv.Int4PagedCache(pool), DynamicCache(config=model.config)
    for layer, cache in product(range(2), (paged, fp)):
        cache.update(*chunk(2000, batch=3, head_dim=32), layer)
    before = pool.copied_bytes
    paged.reorder_cache(torch.tensor([1, 1, 0], device=DEVICE))
    copied = pool.copied_bytes - before
    assert copied == pool.rings.nbytes // pool.rings.count  # one row is named twice
    assert copied < 0.02 * sum(t.nbytes for layer in fp.layers for t in (layer.keys, layer.values))


@torch.no_grad()
def test_out_of_pages_leaves_other_rows_as_they_were(model):
    int4kv.patch(model, centre=None)
    pool = int4kv.PagePool(model.config, pages=10, sequences=3, page_size=8, device=DEVICE, centre=None)
    held, refused = int4kv.Int4PagedCache(pool), int4kv.Int4PagedCache(pool)
    model(random_ids(1, 40), **as_argument(held))
    with pytest.raises(int4kv.paging.OutOfPages, match="are needed for layers with full attention and 5 of 10 are free"):
        model(random_ids(1, 60), **as_argument(refused))
    assert held.lengths == [40] and refused.lengths == [] and pool.rings.free == 2
    model(random_ids(1, 40), **as_argument(refused))


@torch.no_grad()
def test_what_does_not_fit_is_refused(model):
    int4kv.patch(model)
    _, cache = paged(model)
    model(random_ids(2, 5), **as_argument(cache))
    with pytest.raises(ValueError, match="key_states has 1 rows; this cache has 2"):
        model(random_ids(1, 1), **as_argument(cache))
    for name, move in (("indices", cache.batch_select_indices), ("beam_idx", cache.reorder_cache)):
        with pytest.raises(ValueError, match=rf"{name} is \[2\]; accepted: indices from -2 to 1, or a bool mask \[2\]: the cache holds 2"):
            move(torch.tensor([2]))
    with pytest.raises(ValueError, match="repeats is 0; accepted: 1 or more"):
        cache.batch_repeat_interleave(0)
    with pytest.raises(ValueError, match="lengths has 1 entries; accepted: 2"):
        cache.crop_rows([1])
    with pytest.raises(ValueError, match="other is a cache of another pool"):
        cache.join(paged(model)[1])
    assert cache.lengths == [5, 5]
