"""Recipes as a user asks for them: widths, codebooks, rotations, sinks, the start threshold, layers apart, and presets by name."""

import itertools

import pytest
import torch
from devices import DEVICE
from test_cache import chunk, fill, layer
from tiny_models import random_ids, tiny_gemma3, tiny_qwen2

import int4kv
from int4kv import reference
from int4kv.attention import attend_chunk
from int4kv.config import BITS, CODEBOOKS
from int4kv.naming import cache_of
from int4kv.presets import PRESETS


def attended(target, k, v, handed, seed=3):
    """attend over what a layer handed out, and exact attention over the same keys and values."""
    q = torch.randn(k.shape[0], 2 * k.shape[1], 1, k.shape[3], generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    ours = attend_chunk(q, handed, None, k.shape[3] ** -0.5)
    none = torch.zeros(*k.shape[:3], 0, dtype=torch.float16)
    return ours.cpu(), reference.attend(q.cpu(), k.cpu(), none, v.cpu(), none, 0, k.shape[2], k.shape[3] ** -0.5)


@pytest.mark.parametrize("codebook", CODEBOOKS)
@pytest.mark.parametrize("bits", [3, 4, 5, 8, (8, 4), (5, 3), (16, 4), (8, 16)])
def test_a_layer_of_any_width_is_near_the_exact_one(bits, codebook):
    """The error of a weighted mean of Gaussian values; halves, and more, with every bit."""
    k, v = chunk(300, head_dim=128)
    target = layer(bits=bits, codebook=codebook, recent=0)
    ours, exact = attended(target, k, v, fill(target, k, v, [1] * 3 + [297]))
    lowest = min(bits) if isinstance(bits, tuple) else bits
    assert (ours - exact).norm() / exact.norm() < {3: 0.45, 4: 0.2, 5: 0.1, 8: 0.015}[lowest]


ROTATIONS = ["hadamard", "sylvester", "srft", "householder", None]


@pytest.mark.parametrize("k_rotation, v_rotation", [*itertools.product(ROTATIONS[:3], [None, "hadamard"]), ("householder", "srft"), (None, "srft")])
@pytest.mark.parametrize("block", [None, 16, 128])
def test_rotations_of_keys_and_values_apart(k_rotation, v_rotation, block):
    k, v = chunk(60, head_dim=64)
    target = layer(rotation=(k_rotation, v_rotation), hadamard_block=block, bits=8, recent=4)
    ours, exact = attended(target, k, v, fill(target, k, v, [20, 1, 39]))
    assert (ours - exact).norm() / exact.norm() < 0.015


@pytest.mark.parametrize("v_centre", ["prompt", None])
def test_the_centre_of_values_comes_back(v_centre):
    """Large constant values: centred, four bits are enough for them; the first keys of a short prompt are written again."""
    k, v = chunk(200, head_dim=64)
    v = v + 30.0
    target = layer(v_centre=v_centre, recent=0)
    ours, exact = attended(target, k, v, fill(target, k, v, [5, 60, 1, 134]))
    error = (ours - exact).norm() / (exact - 30.0).norm()
    assert error < 0.25 if v_centre else error > 0.5


@pytest.mark.parametrize("sinks", [1, 4, 50])
def test_sinks_are_exact_whatever_follows(sinks):
    """Keys of the first tokens so large that all attention goes to them: exact with sinks, to the rounding of fp16."""
    k, v = chunk(90, head_dim=64)
    k, q = k * 0.1, torch.randn(1, 2, 1, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    k[:, :, :1] += 40 * q / q.norm(dim=-1, keepdim=True)
    error = []
    for n in (sinks, 0):
        target = layer(sinks=n, recent=0, bits=3, centre=None)
        handed = fill(target, k, v, [3, 1, 86])
        error.append((attend_chunk(q, handed, None, 1.0) - v[:, :, :1]).abs().max().item())
    assert error[0] < 5e-3 < 0.05 < error[1]
    assert target.sink is None and layer(sliding_window=8, sinks=4).sink is None


def test_sinks_survive_crop_and_reorder():
    k, v = chunk(40, batch=2)
    target, again = layer(sinks=6), layer(sinks=6)
    fill(target, k, v, [40])
    target.crop(-37)
    target.update(k[:, :, 3:], v[:, :, 3:])
    fill(again, k, v, [3, 37])
    assert all(torch.equal(a, b) for a, b in zip(target.sink.tensors, again.sink.tensors))
    target.reorder_cache(torch.tensor([1, 1]))
    assert torch.equal(target.sink.tensors[0][0], again.sink.tensors[0][1])


@pytest.mark.parametrize("recent", [0, 8])
def test_short_sequences_are_read_exactly_up_to_the_start(recent):
    k, v = chunk(120)
    target = layer(start=64, recent=recent, bits=3)
    for first, n in ((0, 10), (10, 1), (11, 53)):
        handed = target.update(k[:, :, first : first + n], v[:, :, first : first + n])[0]
        if first:
            ours, exact = attended(target, k[:, :, : first + n], v[:, :, : first + n], handed)
            assert (ours - exact).abs().max() < 2e-3, first
    held = target.nbytes
    handed = target.update(k[:, :, 64:65], v[:, :, 64:65])[0]
    ours, exact = attended(target, k[:, :, :65], v[:, :, :65], handed)
    assert (ours - exact).abs().max() > 1e-2 and target.nbytes < held


def test_layers_apart():
    model = tiny_qwen2(num_hidden_layers=4)
    with int4kv.patched(model, bits=3, layer_bits={0: 8, -1: (8, 4), 2: 16}):
        cache = cache_of(model(random_ids(1, 50)))
        rows = int4kv.report(cache).layers
    assert [r.bits for r in rows] == ["8", "3", "16", "8/4"] and [r.skipped for r in rows] == [""] * 4
    widths = [tuple(layer.codes.tensors[i].shape[-1] for i in (0, 2)) for layer in cache.layers]
    assert widths == [(32, 32), (12, 12), (32, 32), (32, 16)]
    with pytest.raises(ValueError, match=r"layer_bits is \[4\]; accepted: indices from -4 to 3"):
        int4kv.patch(model, layer_bits={4: 8})


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("make", [tiny_qwen2, tiny_gemma3])
def test_presets_generate_and_report_what_they_hold(name, make):
    model = make()
    with int4kv.patched(model, int4kv.preset(name)):
        cache = cache_of(model.generate(random_ids(2, 40), do_sample=False, max_new_tokens=8, return_dict_in_generate=True))
    assert cache.config == int4kv.preset(name) and cache.get_seq_length() == 47
    assert all(row.ratio > 1 for row in int4kv.report(cache, 1000).layers if not row.window)
    assert int4kv.report(cache).bytes == cache.memory_footprint()


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match="name is 'int4'; accepted: default, bergach, saw-int4"):
        int4kv.preset("int4")
    assert int4kv.preset("k8v4", recent=0) == int4kv.Int4KVConfig(bits=(8, 4), recent=0)


@pytest.mark.parametrize("recipe", [dict(bits=b) for b in BITS[:-1]] + [dict(codebook=c, recent=0) for c in CODEBOOKS] + [
    dict(bits=(8, 3), sinks=4, v_centre="prompt"), dict(group_size=32, codebook="asymmetric"), dict(rotation="srft", layer_bits={0: 8})])
def test_planned_bytes_are_held_bytes(recipe):
    """report(cache, tokens) is arithmetic; the tensors of a full cache hold just that."""
    config = tiny_qwen2(head_dim=64).config
    cache = int4kv.Int4Cache(config, max_cache_len=300, **recipe)
    for i in range(config.num_hidden_layers):
        cache.update(*chunk(300, head_dim=64), i)
    assert int4kv.report(cache, 300).bytes == cache.memory_footprint()
