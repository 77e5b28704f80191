"""DynamicCache to Int4Cache and back: the same bytes as reading with the Int4Cache, wherever the DynamicCache still has what it takes."""

import copy

import pytest
import torch
from devices import DEVICE
from tiny_models import random_ids, tiny_gemma3, tiny_qwen2
from transformers import DynamicCache, StaticCache

import int4kv
from int4kv.naming import as_argument
from int4kv.saved.layers import describe


@torch.no_grad()
def read(model, ids, cache, mask=None):
    model(ids, **as_argument(cache), attention_mask=mask, use_cache=True)
    return cache


def read_both(model, ids, mask=None, **options):
    """(DynamicCache, Int4Cache) of the same keys and values."""
    dynamic = read(model, ids, DynamicCache(config=model.config), mask)
    direct = int4kv.Int4Cache(model.config, **options)
    with int4kv.patched(model, **options):
        read(model, ids, direct, mask)
    return dynamic, direct


OPTIONS = [dict(), dict(bits=(5, 3)), dict(recent=0, v_centre="prompt"), dict(sinks=4, codebook="uniform"), dict(start=100), dict(bits=16),
           dict(centre=None, prefill="packed"), dict(skip_layers=(0,), max_cache_len=200)]


@pytest.mark.parametrize("tokens", [5, 24, 150])
@pytest.mark.parametrize("options", OPTIONS)
def test_converted_is_as_if_stored_at_once(model, options, tokens):
    """Each layer against one that was given the DynamicCache's keys and values; where the window has moved on, against the newest tokens."""
    dynamic = read(model, random_ids(2, tokens), DynamicCache(config=model.config))
    before = copy.deepcopy(dynamic)
    converted = int4kv.Int4Cache.from_dynamic(dynamic, model.config, **options)
    assert converted.get_seq_length() == tokens
    for i, (mine, its) in enumerate(zip(converted.layers, before.layers)):
        assert torch.equal(its.keys, dynamic.layers[i].keys)
        if its.keys.shape[2] == tokens:
            direct = int4kv.Int4Cache(model.config, **options).layers[i]
            direct.update(its.keys, its.values)
            expected, found = describe(direct), describe(mine)
            assert expected[0] == found[0] and all(torch.equal(t, found[1][name]) for name, t in expected[1].items())
        else:
            assert mine.codes.start == tokens - its.keys.shape[2] and mine.sliding_window - 1 == its.keys.shape[2]


def test_exact_storage_goes_on_with_the_stock_tokens_either_way(model):
    ids, new = random_ids(2, 150), 20
    expected = model.generate(ids, max_new_tokens=new, do_sample=False)
    dynamic, direct = read_both(model, ids[:, :-1], bits=16)
    with int4kv.patched(model, bits=16):
        converted = int4kv.Int4Cache.from_dynamic(dynamic, model.config, bits=16)
        assert torch.equal(model.generate(ids, **as_argument(converted), max_new_tokens=new, do_sample=False), expected)
    assert torch.equal(model.generate(ids, **as_argument(direct.to_dynamic()), max_new_tokens=new, do_sample=False), expected)


def test_padding_is_left_out_of_the_centre(model):
    ids, mask = random_ids(3, 20), torch.ones(3, 20, dtype=torch.long, device=DEVICE)
    mask[0, :13], mask[2, :5] = 0, 0
    dynamic, direct = read_both(model, ids, mask)
    converted = int4kv.Int4Cache.from_dynamic(dynamic, model.config, attention_mask=mask)
    first = [cache.layers[0] for cache in (direct, converted)]  # later layers see the padding rows that SDPA makes otherwise
    assert torch.equal(first[0].centres[0], first[1].centres[0]) and first[0].early.needed == first[1].early.needed == 45
    assert int4kv.Int4Cache.from_dynamic(dynamic, model.config).layers[0].early.needed == 32
    with pytest.raises(ValueError, match=r"attention_mask has shape \[3, 19\]; accepted: None, \[3, 20\]"):
        int4kv.Int4Cache.from_dynamic(dynamic, model.config, attention_mask=mask[:, 1:])


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("tokens", [5, 24, 150])
def test_there_and_back(model, tokens):
    """Eight bits keep a vector within 1 %; the newest 32 tokens come back as fp16. Sliding layers keep their window and their position."""
    dynamic = read(model, random_ids(2, tokens), DynamicCache(config=model.config))
    back = int4kv.Int4Cache.from_dynamic(dynamic, model.config, bits=8).to_dynamic()
    assert back.get_seq_length() == tokens
    for mine, its in zip(back.layers, dynamic.layers):
        assert type(mine) is type(its) and mine.keys.shape == its.keys.shape and mine.keys.dtype == its.keys.dtype
        assert mine.get_seq_length() == its.get_seq_length()
        for found, expected in ((mine.keys, its.keys), (mine.values, its.values)):
            assert relative_error(found, expected) < 0.01
            assert relative_error(found[:, :, -31:], expected[:, :, -31:]) < 1e-3


def test_four_bits_go_on_as_well_after_the_window_has_moved():
    """The centre of a sliding layer is then made of the tokens left: it costs about as much error as the centre of the first ones."""
    model = tiny_gemma3(sliding_window=64)
    dynamic, direct = read_both(model, random_ids(1, 300))
    converted = int4kv.Int4Cache.from_dynamic(dynamic, model.config)
    exact = dynamic.layers[0].keys
    errors = [relative_error(cache.to_dynamic().layers[0].keys, exact) for cache in (converted, direct)]
    assert errors[0] < 1.2 * errors[1] and errors[1] < 0.12


def test_a_converted_sliding_layer_crops_as_far_as_it_holds():
    model = tiny_gemma3()
    dynamic = read(model, random_ids(1, 100), DynamicCache(config=model.config))
    converted = int4kv.Int4Cache.from_dynamic(dynamic, model.config)
    with pytest.raises(ValueError, match="slides over 24 tokens and can take back 0 at most"):
        converted.layers[0].crop(-1)


def test_a_cache_without_a_config_keeps_all_and_an_empty_one_nothing(model):
    """DynamicCache() knows no windows: its sliding layers hold every token, which sets nothing back."""
    whole = int4kv.Int4Cache.from_dynamic(read(model, random_ids(1, 100), DynamicCache()), model.config)
    direct = read_both(model, random_ids(1, 100))[1]
    assert all(torch.equal(t, describe(direct.layers[0])[1][name]) for name, t in describe(whole.layers[0])[1].items())
    empty = int4kv.Int4Cache.from_dynamic(DynamicCache(), model.config)
    assert empty.get_seq_length() == 0 and empty.to_dynamic().get_seq_length() == 0


def shortened(dynamic):
    for name in ("keys", "values"):
        setattr(dynamic.layers[1], name, getattr(dynamic.layers[1], name)[:, :, :-1])
    return dynamic


@pytest.mark.cpu_only
def test_what_cannot_be_converted_is_refused_by_name():
    qwen2, gemma3 = tiny_qwen2(), tiny_gemma3(layer_types=["full_attention", "sliding_attention", "full_attention"])
    ids = random_ids(1, 60)

    def dynamic(model, **options):
        return read(model, ids, DynamicCache(config=model.config, **options))

    with pytest.raises(TypeError, match="dynamic is a StaticCache; accepted: a DynamicCache"):
        int4kv.Int4Cache.from_dynamic(StaticCache(config=qwen2.config, max_cache_len=80), qwen2.config)
    offloading = dynamic(qwen2)
    offloading.offloading = True
    with pytest.raises(TypeError, match="dynamic is a DynamicCache, offloading"):
        int4kv.Int4Cache.from_dynamic(offloading, qwen2.config)
    cases = [(dynamic(gemma3), qwen2, r"dynamic holds \[60\] tokens in 3 of 3 layers; accepted: as many tokens in each of 2"),
             (dynamic(tiny_qwen2(num_key_value_heads=4)), qwen2,
              r"layer 0 of dynamic holds keys \[1, 4, 60, 32\]; accepted: \[batch, 2, tokens, 32\]"),
             (dynamic(tiny_gemma3()), gemma3, r"layer 0 of dynamic holds the newest 23 of 60 tokens; accepted: 60 or more"),
             (shortened(dynamic(qwen2)), qwen2, r"dynamic holds \[59, 60\] tokens in 2 of 2 layers")]
    for cache, model, message in cases:
        with pytest.raises(ValueError, match=message):
            int4kv.Int4Cache.from_dynamic(cache, model.config)
    with pytest.raises(ValueError, match="max_cache_len is 50; dynamic holds 60 tokens"):
        int4kv.Int4Cache.from_dynamic(dynamic(qwen2), qwen2.config, max_cache_len=50)
