"""generate_batch of a patched model: the text of one request at a time, in int4 pages, with less memory."""

import random
from types import SimpleNamespace

import pytest
import torch
import transformers
from tiny_models import random_ids, tiny_gemma3, tiny_qwen2
from transformers import ContinuousBatchingConfig, GenerationConfig

import int4kv
from int4kv import models

pytestmark = pytest.mark.cpu_only  # transformers' loop and its memory handler ask torch for the device, not the model; the ops are tested on all
PAGE = 16
NEW = 8


def settings(**options):
    return ContinuousBatchingConfig(**(dict(page_size=PAGE, num_blocks=200, max_batch_tokens=4096, allow_block_sharing=False) | options))


def decoding(**options):
    return GenerationConfig(**(dict(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0) | options))


def batch(model, prompts, generation=None, **options):
    return list(model.generate_batch(prompts, generation_config=generation or decoding(), continuous_batching_config=settings(**options)).values())


def one_by_one(model, prompts):
    found = [model.generate(torch.tensor([p]), max_new_tokens=NEW, do_sample=False) for p in prompts]
    return [ids[0, len(p) :].tolist() for ids, p in zip(found, prompts)]


def texts(outputs):
    assert not any(output.error for output in outputs)
    return [output.generated_tokens for output in outputs]


def prompts_of(lengths, seed=1):
    ids = random_ids(1, 4000, seed=seed)[0].tolist()
    return [ids[31 * i : 31 * i + n] for i, n in enumerate(lengths)]


class Cache:
    """Keeps the cache of the last manager, and how many requests ran at once."""

    def __init__(self, monkeypatch):
        from int4kv.batching.cache import Int4PagedAttentionCache

        self.made, self.most, watched = [], 0, self

        class Watched(Int4PagedAttentionCache):
            def __init__(self, **settings):
                super().__init__(**settings)
                watched.made.append(self)

            def _next_step(self):
                watched.most = max(watched.most, len(self._running))
                return super()._next_step()

        monkeypatch.setattr("int4kv.batching.manager.Int4PagedAttentionCache", Watched)

    @property
    def last(self):
        return self.made[-1]


@pytest.fixture
def cache(monkeypatch):
    return Cache(monkeypatch)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", models.NAMES)
def test_64_requests_of_mixed_lengths_give_the_text_of_one_at_a_time(name, cache):
    network, tokenizer = models.load(name, "cpu", torch.float32)
    text = models.HELDOUT.read_text()
    ids = tokenizer(text[:24000], verbose=False).input_ids
    config = int4kv.calibrate(network, text[24000:], tokenizer=tokenizer, tokens=1024)
    int4kv.patch(network, config)
    lengths = torch.randint(1, 100, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [ids[90 * i : 90 * i + n] for i, n in enumerate(lengths)]
    assert texts(batch(network, prompts, max_batch_tokens=16384, num_blocks=400)) == one_by_one(network, prompts)
    assert cache.most == 64
    check_all_given_back(cache.last)


def check_all_given_back(held):
    held.evict_cached_blocks()
    held.pool.try_to_free_sectors()
    assert held.pool.num_free_sectors == held.num_sectors


def test_requests_that_wait_for_pages_and_are_split_get_through(model, cache):
    """A pool for a few of them, 32 tokens a batch; everything packed, so that where a prompt is split changes nothing."""
    int4kv.patch(model, prefill="packed", centre=None)
    prompts = prompts_of([3, 200, 50, 90, 1, 120, 33, 64, 80, 10])
    assert texts(batch(model, prompts, num_blocks=16, max_batch_tokens=32)) == one_by_one(model, prompts)
    assert 1 < cache.most < 10
    check_all_given_back(cache.last)


def test_a_common_prefix_is_stored_once(cache):
    """The second request shares the pages of the first one's prompt, because the centre is nobody's own."""
    model = int4kv.patch(tiny_qwen2(), centre=None, prefill="packed", recent=0)
    prefix = prompts_of([160])[0]
    prompts = [prefix + prompts_of([20], seed)[0] for seed in (2, 3, 4)]
    shared = batch(model, prompts, allow_block_sharing=True, max_batch_tokens=180)
    assert texts(shared) == one_by_one(model, prompts)
    assert len(cache.last.cache_allocators["full_attention"].ledger.hash_to_block) == 10 + 3 * 1


@pytest.mark.parametrize("centre", ["prompt", None])
def test_several_sequences_of_one_prompt_fork(model, centre, cache):
    int4kv.patch(model, centre=centre)
    torch.manual_seed(0)
    found = texts(batch(model, prompts_of([40, 70]), decoding(num_return_sequences=3, do_sample=True, temperature=2.0), allow_block_sharing=True))
    assert len(found) == 6 and len({tuple(tokens) for tokens in found}) == 6
    surest = texts(batch(model, prompts_of([40]), decoding(num_return_sequences=3, do_sample=True, temperature=1e-4), allow_block_sharing=True))
    assert surest[0] == surest[1] == surest[2]
    check_all_given_back(cache.last)


@pytest.mark.parametrize("recipe", [dict(bits=(8, 3)), dict(layer_bits={0: 8}, skip_layers=(-1,)), dict(codebook="asymmetric", group_size=32)])
def test_other_recipes(model, recipe):
    int4kv.patch(model, centre=None, **recipe)
    prompts = prompts_of([5, 130, 60])
    assert texts(batch(model, prompts)) == one_by_one(model, prompts)


def test_a_request_that_can_never_fit_fails_alone(model):
    int4kv.patch(model, centre=None)
    prompts = prompts_of([20, 3000, 30])
    found = batch(model, prompts, num_blocks=16)
    assert "has 3000 tokens and max_new_tokens 8" in found[1].error and "accepted: up to" in found[1].error
    assert [found[0].generated_tokens, found[2].generated_tokens] == one_by_one(model, [prompts[0], prompts[2]])


def test_the_same_bytes_hold_more_tokens(cache):
    """num_blocks counts the bytes of unpacked pages: float32 ones here, so 7.6 times the tokens."""
    model = int4kv.patch(tiny_qwen2(head_dim=128), centre=None)
    batch(model, prompts_of([5, 5]), num_blocks=100)
    held = cache.last
    fp_bytes = 100 * PAGE * 2 * 2 * 2 * 128 * 4
    assert 0.97 * fp_bytes < held.nbytes <= 1.03 * fp_bytes
    assert held.cache_allocators["full_attention"].num_blocks * PAGE > 7.6 * 100 * PAGE


def test_requests_get_in_by_what_they_need(cache):
    """100 pages of 16 float32 tokens: 775 packed ones. A request of 3200 tokens takes 201 and a ring of 32 float16 rows 8, so three get in;
    were a share of the memory kept for rings, it would be less."""
    model = int4kv.patch(tiny_qwen2(head_dim=128), centre=None, prefill="packed")
    prompts = [ids * 2 for ids in prompts_of([1600] * 4)]
    assert texts(batch(model, prompts, num_blocks=100)) == one_by_one(model, prompts)
    assert cache.most == 3


@pytest.mark.parametrize("options, message", [
    (dict(cpu_offload_space=1.0), "cpu_offload_space is 1.0; accepted with int4 pages: 0"),
    (dict(use_async_batching=True), "use_async_batching is True; accepted with int4 pages: None"),
    (dict(use_cuda_graph=True), "use_cuda_graph is True; accepted with int4 pages: None"),
    (dict(default_compile_level=1), "default_compile_level is 1; accepted with int4 pages: 0"),
    (dict(num_blocks=1, page_size=4), "num_blocks or max_memory_percent leave"),
])
def test_what_packed_pages_do_not_do_is_refused(options, message):
    model = int4kv.patch(tiny_qwen2(), centre=None)
    with pytest.raises(ValueError, match=message):
        batch(model, [[1, 2, 3]], **options)


@pytest.mark.parametrize("config", [dict(sinks=4), dict(start=8), dict(max_cache_len=100)])
def test_recipes_that_pages_cannot_hold_are_refused(config):
    model = int4kv.patch(tiny_qwen2(), **config)
    with pytest.raises(ValueError, match=f"{next(iter(config))} is .*; accepted in pages"):
        batch(model, [[1, 2, 3]])


def test_another_attention_than_int4kv_is_refused():
    model = int4kv.patch(tiny_qwen2(), centre=None)
    model.set_attn_implementation("sdpa")
    assert "the model's attention is sdpa; accepted with int4 pages: int4kv" in batch(model, [[1, 2, 3]])[0].error


def test_an_older_transformers_is_told(monkeypatch):
    from int4kv.batching.cache import with_names

    with pytest.raises(NotImplementedError, match=f"transformers is {transformers.__version__}, whose .* does not use PagedThing"):
        with_names(test_an_older_transformers_is_told, PagedThing=SimpleNamespace)


def test_unpatching_gives_transformers_own_pages_back():
    model = tiny_gemma3()
    prompts = prompts_of([30, 60])
    before = texts(batch(model, prompts))
    int4kv.unpatch(int4kv.patch(model))
    assert texts(batch(model, prompts)) == before


def test_pages_take_the_first_sectors_and_rings_runs_from_the_back():
    from int4kv.batching.rings import SectorPool

    pool, runs, choose = SectorPool(40, 1), [], random.Random(0)
    pool.set_blocks_per_sector(0, 1)
    pool.allocate_sector(0)
    assert pool.take_run(3) == 39 and pool.get_free_blocks(0, 1) == [2]  # 0 and 1 are transformers' trash
    pool.reset()
    for _ in range(500):
        if runs and choose.random() < 0.5:
            pool.give_back_run(runs.pop(choose.randrange(len(runs))), 4)
        elif (first := pool.take_run(4)) is not None:
            runs.append(first)
        taken = {sector for first in runs for sector in range(first, first + 4)}
        assert len(taken) == 4 * len(runs) and pool.free_sectors == sorted(set(range(2, 42)) - taken, reverse=True)


def test_forks_that_do_not_all_fit_wait(cache):
    """Room for the prompt's request and some of its three children: the others read the prompt again, and no sector is lost."""
    model = int4kv.patch(tiny_qwen2(head_dim=128), centre=None, prefill="packed")
    found = texts(batch(model, prompts_of([600]), decoding(num_return_sequences=4, do_sample=True, temperature=1e-4), num_blocks=15,
                        allow_block_sharing=False))
    assert len(found) == 4 and all(tokens == found[0] for tokens in found)
    assert 1 < cache.most < 4
    check_all_given_back(cache.last)
