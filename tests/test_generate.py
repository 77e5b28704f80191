"""Every way to generate. With 16-bit storage the same path must give stock transformers' tokens, one for one;
with 4-bit codes and prefill="packed", decoding strategies that are equal in theory must be equal token for token."""

import copy
import functools
import io

import pytest
import torch
import transformers
from devices import DEVICE
from tiny_models import random_ids

import int4kv
from int4kv.naming import as_argument, cache_of

NEW = 24
NEVER = 10_000  # prompt lookup wants an end-of-sequence token
MAJOR = int(transformers.__version__.split(".")[0])
EXACT = dict(bits=16)
PACKED = dict(prefill="packed")


def greedy(model, ids, **options):
    return model.generate(ids, do_sample=False, **({"max_new_tokens": NEW} | options))


def padded_batch():
    ids, mask = random_ids(3, 40), torch.ones(3, 40, dtype=torch.long, device=DEVICE)
    mask[0, :13], mask[2, :5] = 0, 0
    return ids.masked_fill(mask == 0, 0), mask


def stock(model, run):
    """What run(model) gives without int4kv."""
    assert not int4kv.is_patched(model)
    return run(model)


def take_back(cache, tokens, length):
    """crop() as the transformers version at hand calls it."""
    cache.crop(-tokens if MAJOR >= 5 else length - tokens)


PLAIN = {
    "short prompt": lambda m: greedy(m, random_ids(1, 5)),
    "one token": lambda m: greedy(m, random_ids(1, 1)),
    "prompt": lambda m: greedy(m, random_ids(1, 40)),
    "prompt beyond the window": lambda m: greedy(m, random_ids(1, 150)),
    "generation beyond every capacity": lambda m: greedy(m, random_ids(1, 40), max_new_tokens=300),
    "batch": lambda m: greedy(m, random_ids(3, 40)),
    "left padding": lambda m: greedy(m, padded_batch()[0], attention_mask=padded_batch()[1]),
    "beams": lambda m: greedy(m, random_ids(2, 40), num_beams=3),
    "beams, left padding": lambda m: greedy(m, padded_batch()[0], attention_mask=padded_batch()[1], num_beams=3),
    "returned beams": lambda m: greedy(m, random_ids(1, 30), num_beams=3, num_return_sequences=2),
    "no cache": lambda m: greedy(m, random_ids(1, 40), use_cache=False, max_new_tokens=8),
    "static cache": lambda m: greedy(m, random_ids(1, 40), cache_implementation="static", max_new_tokens=8),
}


@pytest.mark.parametrize("case", PLAIN)
def test_exact_storage_gives_the_stock_tokens(model, case):
    expected = stock(model, PLAIN[case])
    with int4kv.patched(model, **EXACT):
        assert torch.equal(PLAIN[case](model), expected)


def test_sampling(model):
    def run(m):
        torch.manual_seed(3)
        return m.generate(random_ids(1, 40), do_sample=True, num_return_sequences=2, max_new_tokens=30)

    expected = stock(model, run)
    with int4kv.patched(model, **EXACT):
        assert torch.equal(run(model), expected)


# Ways that give the greedy tokens in theory, whatever stock transformers makes of them in the version at hand.


def assisted(m, ids, assistant, **options):
    return greedy(m, ids, assistant_model=assistant, **options)


def eager_assistant(m, ids, assistant):
    """Drafts longer than the rollback, so that whole stretches are taken back."""
    assistant.generation_config.num_assistant_tokens = 45
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    try:
        return assisted(m, ids, assistant, max_new_tokens=50)[:, : ids.shape[1] + NEW]
    finally:
        assistant.generation_config.num_assistant_tokens = 20


def prompt_lookup(m, ids, assistant):
    out = greedy(m, ids, prompt_lookup_num_tokens=4, eos_token_id=NEVER)
    return out[:, : ids.shape[1] + NEW]  # transformers 4.57 returns one token too many


def chunked(m, ids, assistant):
    return greedy(m, ids, prefill_chunk_size=32)


def long_chunks(m, ids, assistant):
    return greedy(m, ids, prefill_chunk_size=64)


def crop_and_repeat(m, ids, assistant):
    with torch.no_grad():
        cache = cache_of(m(ids[:, :-1], use_cache=True))
        for token in (5, 6, 7, 8):
            m(torch.tensor([[token]], device=DEVICE), **as_argument(cache))
    take_back(cache, 4, cache.get_seq_length())
    return greedy(m, ids, **as_argument(cache))


def saved_and_loaded(m, ids, assistant):
    with torch.no_grad():
        cache = cache_of(m(ids[:, :-1], use_cache=True))
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return greedy(m, ids, **as_argument(torch.load(file, weights_only=False)))


def inference_mode(m, ids, assistant):
    with torch.inference_mode():
        cache = cache_of(m(ids[:, :-1], use_cache=True))
    return greedy(m, ids, **as_argument(cache))


def copied_prefix(m, ids, assistant):
    with torch.no_grad():
        cache = cache_of(m(ids[:, :-1], use_cache=True))
    greedy(m, torch.cat([ids, random_ids(1, 9, seed=4)], 1), **as_argument(copy.deepcopy(cache)))
    return greedy(m, ids, **as_argument(copy.deepcopy(cache)))


def copied_model(m, ids, assistant):
    return greedy(copy.deepcopy(m), ids)


def row_of_repeated_batch(m, ids, assistant):
    with torch.no_grad():
        cache = cache_of(m(ids[:, :-1], use_cache=True))
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.reorder_cache(torch.tensor([1, 0]))
    assert cache.batch_size == 2
    return greedy(m, ids.repeat(2, 1), **as_argument(cache))[:1]


WAYS = [assisted, eager_assistant, prompt_lookup, chunked, long_chunks, crop_and_repeat, saved_and_loaded, inference_mode,
        copied_prefix, copied_model, row_of_repeated_batch]


@functools.cache
def greedy_tokens(model, tokens, recent=None):
    """The greedy tokens of a model, patched with so many recent tokens or not at all, found once for all ways."""
    return greedy(model, random_ids(1, tokens))


@pytest.mark.parametrize("tokens", [40, 150])
@pytest.mark.parametrize("way", WAYS)
def test_exact_storage_gives_the_greedy_tokens(model, assistant, way, tokens):
    expected = stock(model, lambda m: greedy_tokens(m, tokens))
    with int4kv.patched(model, **EXACT), int4kv.patched(assistant, **EXACT):
        assert torch.equal(way(model, random_ids(1, tokens), assistant), expected)


# Without the ring a short prompt is read through codes whose centre is not settled yet: equal from centre_tokens on.
@pytest.mark.parametrize("tokens, recent", [(40, 0), (150, 0), (12, 32), (40, 32), (150, 32)])
@pytest.mark.parametrize("way", WAYS)
def test_packed_prefill_keeps_equal_ways_equal(model, assistant, way, tokens, recent):
    with int4kv.patched(model, recent=recent, **PACKED), int4kv.patched(assistant, recent=recent, **PACKED):
        assert torch.equal(way(model, random_ids(1, tokens), assistant), greedy_tokens(model, tokens, recent))


def test_multi_turn_reuse(model):
    def run(m):
        first = greedy(m, random_ids(1, 40), return_dict_in_generate=True)
        second = torch.cat([first.sequences, random_ids(1, 7, seed=5)], 1)
        return greedy(m, second, **as_argument(cache_of(first)))

    expected = stock(model, run)
    with int4kv.patched(model, **EXACT):
        assert torch.equal(run(model), expected)


def test_padded_rows_equal_their_own_prompts(model):
    """The centre leaves padding out, so a padded row of a batch decodes as it would alone."""
    ids, mask = padded_batch()
    with int4kv.patched(model):
        together = greedy(model, ids, attention_mask=mask, max_new_tokens=16)
        for row in range(3):
            alone = greedy(model, ids[row : row + 1, mask[row] == 1], max_new_tokens=16)
            assert torch.equal(together[row, 40:], alone[0, -16:])


def test_packed_attention_equals_dequantised_sdpa(model):
    """The op on codes against transformers' own SDPA on the dequantised tensors."""
    ids = random_ids(1, 60)
    with int4kv.patched(model, recent=0, **PACKED):
        expected = greedy(model, ids)
    cache = int4kv.Int4Cache(model.config, recent=0, **PACKED)
    assert torch.equal(greedy(model, ids, **as_argument(cache)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models(model, dtype):
    half = copy.deepcopy(model).to(dtype)
    ids = random_ids(2, 40)
    with int4kv.patched(half):
        assert greedy(half, ids, max_new_tokens=12).shape == (2, 52)


def test_autocast_mixes_dtypes(model):
    with int4kv.patched(model), torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert greedy(model, random_ids(1, 40), max_new_tokens=12).shape == (1, 52)
