"""A row of an Int4PagedCache in a file: what the contiguous cache saves, in either kind again, or refused with nothing changed."""

import pytest
import torch
from devices import DEVICE, on_device
from saved_caches import check_same_future, filled, forward
from tiny_models import random_ids, tiny_qwen2

import int4kv
from int4kv.naming import CACHE, as_argument
from int4kv.paging import OutOfPages, OutOfRings
from int4kv.saved import container

RECIPES = {
    "default": {}, "finer keys": dict(bits=(8, 3)), "skipped": dict(skip_layers=(0,)), "exact": dict(bits=16), "no ring": dict(recent=0),
    "groups": dict(group_size=32, codebook="asymmetric"), "value centre": dict(v_centre="prompt", centre_tokens=50),
    "packed": dict(prefill="packed", codebook="uniform"),
}


def pool_of(model, pages=128, sequences=4, **options):
    return int4kv.PagePool(model.config, model._int4kv.config, pages=pages, sequences=sequences, page_size=8, device=DEVICE, **options)


def paged(model, ids, pool=None, mask=None):
    cache = int4kv.Int4PagedCache(pool or pool_of(model))
    forward(model, ids, cache, mask)
    return cache


def state(pool):
    """All that a pool holds, and what of it is in use."""
    return ([(list(group.pages.owners), group.memory.clone()) for group in pool.groups], pool.rings.free, pool.rings.tensor.clone(),
            [[None if c is None else c.clone() for c in layer.centres] for layer in pool.layers])


def same_state(one, other):
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else same_state(a, b) if isinstance(a, (list, tuple)) else a == b
               for a, b in zip(one, other, strict=True))


def store_in_both(contiguous, rows, tokens, seed):
    """The same random keys and values of one sequence into every layer."""
    heads, head_dim, windows = rows.pool.signature
    generator = torch.Generator().manual_seed(seed)
    for i in range(len(windows)):
        k, v = on_device([torch.randn(1, heads, tokens, head_dim, generator=generator) for _ in "kv"])
        contiguous.update(k, v, i)
        rows.store(k, v, i)


@pytest.mark.parametrize("recipe", RECIPES)
def test_pages_save_what_the_contiguous_cache_saves_and_either_goes_on(model, recipe, tmp_path):
    ids = random_ids(1, 115)
    with int4kv.patched(model, **RECIPES[recipe]):
        rows, contiguous = int4kv.Int4PagedCache(pool_of(model)), int4kv.Int4Cache(model.config, model._int4kv.config)
        for seed, tokens in enumerate((100, *[1] * 15)):
            store_in_both(contiguous, rows, tokens, seed)
        int4kv.save_cache(rows, tmp_path / "paged", model, input_ids=ids)
        int4kv.save_cache(contiguous, tmp_path / "contiguous", model, input_ids=ids)
        (_, ours), (_, theirs) = container.read(tmp_path / "paged"), container.read(tmp_path / "contiguous")
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        check_same_future(model, contiguous, int4kv.load_cache(tmp_path / "paged", model, input_ids=ids))
        check_same_future(model, rows, int4kv.load_cache(tmp_path / "contiguous", model, input_ids=ids, pool=pool_of(model)))


@torch.no_grad()
def test_a_row_among_others_that_are_padded_forked_and_cropped(model, tmp_path):
    """Saved from shared pages it joins another batch, and goes on as it would have alone."""
    ids, mask = random_ids(2, 90), torch.ones(2, 90, dtype=torch.long, device=DEVICE)
    mask[1, :30] = 0
    int4kv.patch(model, centre=None)
    cache = paged(model, ids, pool_of(model, sequences=5), mask)
    cache.batch_repeat_interleave(2)
    forward(model, random_ids(4, 1, seed=2), cache)
    cache.crop_rows([91, 91, 61, 50])
    int4kv.save_cache(cache, tmp_path / "saved", model, row=3, input_ids=ids[1:, 30:])
    loaded = int4kv.load_cache(tmp_path / "saved", model, input_ids=ids[1:, 30:], pool=pool_of(model))
    alone = int4kv.Int4PagedCache.of(cache.pool, [cache.pool.fork(cache.sequences[3])])
    assert loaded.lengths == alone.lengths == [50] and loaded.columns == 50
    check_same_future(model, alone, loaded)
    loaded.join(paged(model, random_ids(1, 7), loaded.pool))
    assert loaded.lengths[1:] == [7]


def test_generate_goes_on_from_a_file(model, tmp_path):
    int4kv.patch(model)
    ids, options = random_ids(1, 70), dict(max_new_tokens=20, do_sample=False)
    expected = model.generate(ids, **as_argument(int4kv.Int4PagedCache(pool_of(model))), **options)
    int4kv.save_cache(paged(model, ids[:, :60]), tmp_path / "saved", model, input_ids=ids)
    pool = pool_of(model)
    cache = int4kv.load_cache(tmp_path / "saved", model, input_ids=ids, pool=pool)
    assert torch.equal(model.generate(ids, **as_argument(cache), **options), expected)
    cache.free()
    assert pool.rings.free == 4 and all(group.pages.free == group.pages.count for group in pool.groups)


@pytest.fixture
def saved(model, tmp_path):
    """A file of 60 tokens from a row of pages, saved by the model that stays patched with the default config."""
    int4kv.patch(model)
    int4kv.save_cache(paged(model, random_ids(1, 60)), tmp_path / "saved", model)
    return tmp_path / "saved"


def test_an_unused_pool_takes_the_centre_and_a_used_one_must_have_it(model, saved):
    pool = pool_of(model)
    first, second = (int4kv.load_cache(saved, model, pool=pool) for _ in "ab")
    check_same_future(model, first, second)
    other = paged(model, random_ids(1, 60, seed=2))
    before = state(other.pool)
    with pytest.raises(ValueError, match="k_centre of layer . is not the pool's, which its first sequence gave to all; accepted: the same one"):
        int4kv.load_cache(saved, model, pool=other.pool)
    assert same_state(state(other.pool), before)
    other.free()
    assert int4kv.load_cache(saved, model, pool=other.pool).lengths == [60]


def test_a_calibrated_centre_fits_into_a_pool_in_use(model, tmp_path):
    int4kv.patch(model, int4kv.calibrate(model, random_ids(2, 64)))
    cache = paged(model, random_ids(1, 60))
    int4kv.save_cache(cache, tmp_path / "saved", model)
    check_same_future(model, cache, int4kv.load_cache(tmp_path / "saved", model, pool=cache.pool))


@pytest.mark.cpu_only
@pytest.mark.parametrize("options, error, message", [
    (dict(pages=7), OutOfPages, "8 pages of 8 tokens are needed for layers with full attention and 7 of 7 are free"),
    (dict(sequences=1), OutOfRings, "1 sequences are to be added and 0 of 1 are free"),
    (dict(bits=5), ValueError, "saved was saved with config bits 4; accepted here: 5"),
    (dict(recent=16), ValueError, "saved was saved with config recent 32; accepted here: 16"),
])
def test_what_a_pool_cannot_take_is_refused_with_nothing_changed(model, saved, options, error, message):
    pool = pool_of(model, **options)
    if error is OutOfRings:
        pool.new()
    before = state(pool)
    with pytest.raises(error, match=message):
        int4kv.load_cache(saved, model, pool=pool)
    assert same_state(state(pool), before)


@pytest.mark.cpu_only
def test_several_sequences_and_another_dtype_are_refused(model, tmp_path):
    with int4kv.patched(model, bits=16):
        pool = pool_of(model, dtype=torch.float16)
        before = state(pool)
        for rows, message in ((2, "the file holds 2 sequences; accepted with a pool: 1"),
                              (1, r"k_codes of layer 0 is torch.float32 \[1, ., 9, ..\]; accepted: torch.float16 \[1, ., 9, ..\]")):
            int4kv.save_cache(filled(model, random_ids(rows, 9)), tmp_path / "saved", model)
            with pytest.raises(ValueError, match=message):
                int4kv.load_cache(tmp_path / "saved", model, pool=pool)
        assert same_state(state(pool), before)


@pytest.mark.cpu_only
def test_a_pool_has_its_own_config_device_and_model(model, saved):
    pool = pool_of(model)
    for name, value in (("config", int4kv.Int4KVConfig()), ("device", "cpu")):
        with pytest.raises(ValueError, match=f"{name} is .*; accepted with a pool, which has its own: None"):
            int4kv.load_cache(saved, model, pool=pool, **{name: value})
    with pytest.raises(ValueError, match=f"{CACHE} was made for a model with"):
        int4kv.load_cache(saved, tiny_qwen2(num_hidden_layers=1), pool=pool)


@pytest.mark.cpu_only
@torch.no_grad()
def test_the_row_to_save_is_named_and_holds_tokens(model, tmp_path):
    int4kv.patch(model)
    cache, file = paged(model, random_ids(2, 5)), tmp_path / "saved"
    for row in (None, 2, -1, True):
        with pytest.raises(ValueError, match=f"row is {row}; accepted: one of the cache's 2 rows, counted from 0"):
            int4kv.save_cache(cache, file, model, row=row)
    with pytest.raises(ValueError, match=r"input_ids has shape \[2, 5\]; accepted: \[1, 5 or more\]"):
        int4kv.save_cache(cache, file, model, row=1, input_ids=random_ids(2, 5))
    heads, head_dim, _ = cache.pool.signature
    cache.store(*[torch.zeros(2, heads, 1, head_dim)] * 2, layer_idx=0)
    with pytest.raises(ValueError, match="row 0 of cache holds 6 tokens in some of its layers; accepted: 1 or more, in each as many"):
        int4kv.save_cache(cache, file, model, row=0)
    with pytest.raises(ValueError, match="row is None; accepted: one of the cache's 0 rows"):
        int4kv.save_cache(int4kv.Int4PagedCache(cache.pool), file, model)
    with pytest.raises(ValueError, match="row is 0; accepted for an Int4Cache, which is saved whole: None"):
        int4kv.save_cache(filled(model, random_ids(1, 5)), file, model, row=0)
    assert not list(tmp_path.iterdir())
