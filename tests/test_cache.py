"""Int4Cache and its layers: growth, sliding, cropping, bytes and cost."""

import time

import pytest
import torch
from cached_layers import chunk, fill, layer, stored_keys
from devices import DEVICE, on_cpu, on_device
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_gemma3, tiny_qwen2

import int4kv
from int4kv.attention import attend_chunk
from int4kv.config import ROLLBACK


@pytest.mark.parametrize("window", [None, 1, 2, 24, 100])
@pytest.mark.parametrize("sizes", [[1] * 40, [300], [5, 1, 70, 1, 1, 64, 3], [33, 32, 31, 200]])
@pytest.mark.parametrize("prefill", ["exact", "packed"])
def test_the_same_codes_however_the_tokens_arrive(window, sizes, prefill):
    """Growth, wrap-around, transient rings: after any split the newest tokens have the codes and rows of one write."""
    k, v = chunk(sum(sizes))
    target, whole = layer(window, prefill=prefill, centre=None), layer(None, centre=None)
    fill(target, k, v, sizes)
    fill(whole, k, v, [sum(sizes)])
    end = sum(sizes)
    first = max(target.codes.start, end - window + 1 if window else 0)
    assert first == (max(end - window + 1, 0) if window else 0)
    assert torch.equal(stored_keys(target, first, end), stored_keys(whole, first, end))
    newest = torch.arange(max(end - target.config.recent, 0), end)
    assert target.recent.start <= newest[0] or target.recent.start == target.codes.start
    kept = newest[newest >= target.recent.start]
    for ours, theirs in zip(target.recent.tensors, whole.recent.tensors):
        assert torch.equal(ours[:, :, kept % target.recent.capacity], theirs[:, :, kept % whole.recent.capacity])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_history_attends_to_what_it_should(data):
    """Updates, crops and reorders at random, exact storage: attention over the layer is attention over a plain list."""
    window = data.draw(st.sampled_from([None, 1, 5, 24, 70]))
    target = layer(window, bits=16, recent=data.draw(st.sampled_from([0, 3, 32])), prefill=data.draw(st.sampled_from(["exact", "packed"])))
    k, v = chunk(0, batch=2, head_dim=32)
    for turn in range(data.draw(st.integers(2, 8))):
        tokens = data.draw(st.sampled_from([1, 1, 2, 7, 31, 32, 33, 90]))
        new_k, new_v = chunk(tokens, batch=2, head_dim=32, seed=turn)
        k, v = torch.cat([k, new_k + 3.0], 2), torch.cat([v, new_v], 2)
        handed = fill(target, k[:, :, -tokens:], v[:, :, -tokens:], [tokens])
        q = on_device(torch.randn(2, 4, tokens, 32, generator=torch.Generator().manual_seed(turn)))
        p, t = torch.arange(k.shape[2] - tokens, k.shape[2])[:, None], torch.arange(k.shape[2])
        seen = (t <= p) & (t > p - (window or 10**6))
        expected = torch.nn.functional.scaled_dot_product_attention(*on_cpu((q, k, v)), seen, enable_gqa=True)
        if not handed.exact:
            assert torch.allclose(attend_chunk(q, handed, None, 32**-0.5).cpu(), expected, atol=2e-5)
        if data.draw(st.booleans()):
            taken = data.draw(st.integers(0, min(ROLLBACK, k.shape[2] - 1, tokens if window else k.shape[2])))
            target.crop(-taken)
            k, v = k[:, :, : k.shape[2] - taken], v[:, :, : v.shape[2] - taken]
        if data.draw(st.booleans()):
            target.reorder_cache(torch.tensor([1, 0]))
            k, v = k.flip(0), v.flip(0)


STEPS = [dict(), dict(sliding_window=24), dict(sinks=4), dict(start=100), dict(recent=0), dict(v_centre="prompt"), dict(bits=(8, 3)),
         dict(prefill="packed", codebook="asymmetric"), dict(max_cache_len=160)]


@pytest.mark.parametrize("options", STEPS)
def test_a_prepared_step_is_an_unprepared_one(options):
    """Without gradients single tokens go a short way; it gives the bits of the long one."""
    k, v = chunk(160)
    q = on_device(torch.randn(1, 4, 1, 64, generator=torch.Generator().manual_seed(3)))
    layers = {False: layer(**options), True: layer(**options)}
    for t in range(160):
        found = []
        for gradients, target in layers.items():
            with torch.set_grad_enabled(gradients):
                handed = target.update(k[:, :, t : t + 1], v[:, :, t : t + 1])[0]
                found.append(None if handed.exact else attend_chunk(q, handed, None, 0.125))
        assert t == 0 or torch.equal(*found)
    stored = [target.tensors() for target in layers.values()]
    assert layers[False].next is not None and all(torch.equal(stored[0][name][:, :, :160], t[:, :, :160]) for name, t in stored[1].items())


def test_full_layers_double_and_keep_what_they_hold():
    target = layer()
    k, v = chunk(1100)
    fill(target, k, v, [10])
    capacities = set()
    for t in range(10, 1100):
        target.update(k[:, :, t : t + 1], v[:, :, t : t + 1])
        capacities.add(target.codes.capacity)
    assert capacities == {256, 512, 1024, 2048}


def test_long_layers_grow_by_a_quarter():
    target = layer(centre=None)
    fill(target, *chunk(8192, heads=1, head_dim=32), [8192])
    for tokens, capacity in ((1, 8192 + 2048), (2048, 8192 + 2048 + 2560)):
        target.update(*chunk(tokens, heads=1, head_dim=32))
        assert target.codes.capacity == capacity


def test_known_length_is_allocated_once():
    target = layer()
    target.expected_length = 700
    k, v = chunk(700)
    fill(target, k, v, [600] + [1] * 100)
    assert target.codes.capacity == 700


@pytest.mark.parametrize("window", [24, 100])
@pytest.mark.parametrize("tokens", [1, 5, ROLLBACK])
def test_crop_within_the_rollback_leaves_no_trace(window, tokens):
    k, v = chunk(200)
    plain, cropped = layer(window, centre=None, prefill="packed"), layer(window, centre=None, prefill="packed")
    fill(plain, k, v, [150] + [1] * 50)
    fill(cropped, k, v, [150])
    junk = chunk(tokens, seed=9)
    cropped.update(*junk)
    cropped.crop(-tokens)
    assert cropped.get_seq_length() == 150
    for t in range(150, 200):
        cropped.update(k[:, :, t : t + 1], v[:, :, t : t + 1])
    first = 200 - window + 1
    assert torch.equal(stored_keys(plain, first, 200), stored_keys(cropped, first, 200))
    assert cropped.recent.start <= 200 - cropped.config.recent


def test_crop_means_the_same_in_both_dialects():
    for value in (-30, 70):
        target = layer()
        fill(target, *chunk(100), [100])
        target.crop(value)
        assert target.get_seq_length() == 70


def test_crop_takes_an_integer_that_lies_on_the_device():
    """As assisted decoding of transformers 5.16 and later counts the tokens that did not match."""
    cache = int4kv.Int4Cache(tiny_qwen2().config)
    for index in range(len(cache.layers)):
        cache.update(*chunk(100), index)
    cache.crop(torch.tensor(-30, device=DEVICE))
    assert cache.get_seq_length() == 70


def test_crop_beyond_a_sliding_layer_is_refused_and_changes_nothing():
    target = layer(24)
    fill(target, *chunk(200), [1] * 200)
    with pytest.raises(ValueError, match=r"crop is -60; layer 0 slides over 24 tokens and can take back 32 at most"):
        target.crop(-60)
    assert target.get_seq_length() == 200


def test_recording_allows_a_crop_back_to_the_last_and_stays_bounded():
    target = layer(24, centre=None)
    k, v = chunk(900)
    fill(target, k, v, [100])
    target.activate_past_recording()
    for t in range(100, 300):
        target.update(k[:, :, t : t + 1], v[:, :, t : t + 1])
    target.crop(-200)
    assert target.get_seq_length() == 100 and target.recent.start <= 100 - 32
    for t in range(100, 900):
        target.update(k[:, :, t : t + 1], v[:, :, t : t + 1])
    assert target.codes.capacity == 23 + 256 and target.recent.capacity == 32 + 256


def test_reset_releases_everything():
    cache = int4kv.Int4Cache(tiny_qwen2().config)
    cache.update(*chunk(20, head_dim=32), 0)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.memory_footprint() == 0
    cache.update(*chunk(3, batch=2, head_dim=32), 0)
    assert cache.batch_size == 2


def test_offload_and_prefetch_keep_the_contents():
    target = layer()
    fill(target, *chunk(20), [20])
    before = {name: t.clone() for name, t in target.tensors().items()}
    target.offload(), target.prefetch()
    assert all(torch.equal(before[name], t) for name, t in target.tensors().items())


FULL = [(128, 4096, 3.65), (256, 4096, 3.7), (128, 32768, 3.84), (256, 32768, 3.9)]


@pytest.mark.parametrize("head_dim, tokens, least", FULL)
def test_compression_of_full_attention_counts_every_byte(head_dim, tokens, least):
    cache = int4kv.Int4Cache(tiny_qwen2(head_dim=head_dim, num_hidden_layers=1).config).expect(tokens)
    cache.update(*chunk(tokens, head_dim=head_dim), 0)
    held = sum(t.untyped_storage().nbytes() for t in cache.layers[0].tensors().values())
    row = int4kv.report(cache).layers[0]
    assert row.bytes == held == int4kv.report(cache, tokens).layers[0].bytes
    assert row.fp16_bytes == 2 * 2 * 2 * tokens * head_dim and row.ratio >= least
    assert cache.memory_footprint() == held + 4 * head_dim


@pytest.mark.parametrize("head_dim", [128, 256])
def test_compression_of_a_sliding_layer(head_dim):
    """Against fp16 as transformers keeps it: window - 1 tokens."""
    config = tiny_gemma3(head_dim=head_dim, sliding_window=512, layer_types=["sliding_attention"], num_hidden_layers=1).config
    cache = int4kv.Int4Cache(config)
    cache.update(*chunk(1000, heads=1, head_dim=head_dim), 0)
    row = int4kv.report(cache).layers[0]
    assert row.fp16_bytes == 2 * 2 * 511 * head_dim and row.ratio >= 2.4
    assert row.bytes == int4kv.report(cache, 1000).layers[0].bytes


@pytest.mark.cpu_only
@torch.no_grad()
def test_update_costs_the_same_at_any_length():
    """No torch.cat: a token costs as much behind 32 thousand tokens as behind one thousand, medians of interleaved runs."""
    layers = {tokens: layer(max_cache_len=tokens + 200) for tokens in (1024, 32768)}
    for tokens, target in layers.items():
        fill(target, *chunk(tokens, head_dim=128), [tokens])
    k, v = chunk(1, head_dim=128)
    times = {tokens: [] for tokens in layers}
    for _ in range(150):
        for tokens, target in layers.items():
            begin = time.perf_counter()
            target.update(k, v)
            times[tokens].append(time.perf_counter() - begin)
    short, long = (sorted(t)[75] for t in times.values())
    assert long < 1.5 * short, f"{short * 1e6:.0f} us behind 1024 tokens, {long * 1e6:.0f} us behind 32768"


def test_dense_tensors_under_another_attention():
    """Not patched: update hands out dequantised tensors, the newest chunk exact."""
    model = tiny_qwen2()
    cache = int4kv.Int4Cache(model.config)
    k, v = chunk(100, head_dim=32)
    first = cache.update(k[:, :, :90], v[:, :, :90], 0)
    assert torch.equal(first[0], k[:, :, :90])
    keys, values = cache.update(k[:, :, 90:], v[:, :, 90:], 0)
    assert keys.shape == values.shape == (1, 2, 100, 32)
    assert torch.equal(keys[:, :, 90:], k[:, :, 90:])
    assert (keys[:, :, 58:90] - k[:, :, 58:90]).abs().max() < 5e-3 < (keys[:, :, :58] - k[:, :, :58]).abs().max() < 1.0
