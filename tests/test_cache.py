"""Int4Cache and its layers: growth, sliding, cropping, bytes, cost, and what they refuse."""

import time

import pytest
import torch
from devices import on_cpu, on_device
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_ids, tiny_gemma3, tiny_qwen2

import int4kv
from int4kv.attention import attend_chunk
from int4kv.centre import first_real_centre
from int4kv.codebook import decode
from int4kv.config import ROLLBACK
from int4kv.layer import Int4Layer


def chunk(tokens, batch=1, heads=2, head_dim=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return on_device([torch.randn(batch, heads, tokens, head_dim, generator=generator) for _ in range(2)])


def layer(sliding_window=None, **overrides):
    return Int4Layer(int4kv.Int4KVConfig(**overrides), sliding_window=sliding_window)


def fill(target, k, v, sizes):
    first = 0
    for n in sizes:
        handed = target.update(k[:, :, first : first + n], v[:, :, first : first + n])[0]
        first += n
    return handed


def stored_keys(target, first, end):
    codes, scales = target.codes.tensors[:2]
    slots = torch.arange(first, end) % target.codes.capacity
    return decode(codes.cpu()[:, :, slots], scales.cpu()[:, :, slots], target.head_dim, target.config.codebook)


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
        handed = target.update(k[:, :, -tokens:], v[:, :, -tokens:])[0]
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


def test_full_layers_double_and_keep_what_they_hold():
    target = layer()
    k, v = chunk(1100)
    fill(target, k, v, [10])
    capacities = set()
    for t in range(10, 1100):
        target.update(k[:, :, t : t + 1], v[:, :, t : t + 1])
        capacities.add(target.codes.capacity)
    assert capacities == {256, 512, 1024, 2048}


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


def test_centre_is_the_mean_of_the_first_real_keys():
    """Keys far from zero: what they share is kept, to the noise of three independent ones."""
    k, v = chunk(50, batch=2)
    k = k + torch.linspace(-9, 9, 64, device=k.device).sign() * 40.0
    target = layer()
    target.padding = torch.ones(2, 50, dtype=torch.long)
    target.padding[1, :10] = 0
    fill(target, k, v, [50])
    assert torch.allclose(target.centres[0][0], k[0, :, :32].mean(1), rtol=1e-3)
    assert torch.allclose(target.centres[0][1], k[1, :, 10:42].mean(1), rtol=1e-3)
    frozen = target.centres[0].clone()
    target.update(*chunk(90, batch=2, seed=5))
    assert torch.equal(target.centres[0], frozen) and target.early is None


def test_channels_that_only_scatter_are_not_centred():
    """Half of the pairs are noise around zero: most of their chance mean is left alone, all of the other half's goes."""
    generator = torch.Generator().manual_seed(0)
    k, shared = torch.randn(1, 2, 32, 64, generator=generator), (torch.arange(64) % 32 < 16).float() * 20.0
    centre = first_real_centre(k + shared, torch.ones(1, 32, dtype=torch.bool), 32)[0]
    scattered = shared == 0
    assert (centre[:, scattered].abs().sum() < 0.1 * k[0].mean(1)[:, scattered].abs().sum()) and (centre[:, ~scattered] > 18).all()


def test_centre_works_from_a_single_token():
    k, v = chunk(1)
    target = layer()
    fill(target, k, v, [1])
    assert torch.equal(target.centres[0], k[:, :, 0])


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("sizes", [[1] * 100, [20, 30, 50], [31, 1, 1, 67], [40, 60], [5, 95]])
def test_centre_and_codes_do_not_depend_on_the_chunks(window, sizes):
    k, v = chunk(100)
    k = k + 50.0
    whole, split = layer(window, prefill="packed"), layer(window, prefill="packed")
    fill(whole, k, v, [100])
    fill(split, k, v, sizes)
    assert torch.equal(whole.centres[0], split.centres[0])
    first = 100 - 23 if window else 0
    assert torch.equal(stored_keys(whole, first, 100), stored_keys(split, first, 100))
    newest = torch.arange(100 - 32, 100) % 64
    assert torch.equal(whole.recent.tensors[0][:, :, newest], split.recent.tensors[0][:, :, newest])


def test_rejected_drafts_do_not_stay_in_the_centre():
    """A short prompt with drafts settles the centre too early; the crop unsettles it."""
    k, v = chunk(60)
    drafts = chunk(20, seed=8)
    plain, drafted = layer(prefill="packed"), layer(prefill="packed")
    fill(plain, k, v, [20] + [1] * 40)
    fill(drafted, torch.cat([k[:, :, :20], drafts[0]], 2), torch.cat([v[:, :, :20], drafts[1]], 2), [40])
    drafted.crop(-20)
    for t in range(20, 60):
        drafted.update(k[:, :, t : t + 1], v[:, :, t : t + 1])
    assert torch.equal(plain.centres[0], drafted.centres[0])
    assert torch.equal(stored_keys(plain, 0, 60), stored_keys(drafted, 0, 60))


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


BAD_CONFIG = [
    (dict(bits=6), "bits is 6; accepted: 3, 4, 5, 8, 16"), (dict(bits=(4, 4, 4)), r"bits is \(4, 4, 4\); accepted: one value or a pair"),
    (dict(bits=True), "bits is True"), (dict(codebook="nf4"), "codebook is 'nf4'; accepted: 'lloyd'"), (dict(group_size=48), "group_size is 48; accepted: None"),
    (dict(rotation="fft"), "rotation is 'fft'"), (dict(centre="mean"), "centre is 'mean'; accepted: 'prompt'"),
    (dict(centre="calibrated"), "calibration is None; accepted: the result of int4kv.calibrate, for centre"),
    (dict(rotation=("hadamard", "learned")), "calibration is None; accepted: the result of int4kv.calibrate, for rotation"),
    (dict(channel_lambda=True), "calibration is None; .* for channel_lambda"), (dict(hadamard_block=8), "hadamard_block is 8"),
    (dict(layer_bits={0: 7}), "layer_bits is 7"), (dict(layer_bits={0.5: 4}), "layer_bits is 0.5"),
    (dict(sinks=-1), "sinks is -1"), (dict(start=-1), "start is -1"),
    (dict(recent=-1), "recent is -1"), (dict(recent=1.5), "recent is 1.5"), (dict(prefill="fast"), "prefill is 'fast'"),
    (dict(max_cache_len=0), "max_cache_len is 0"), (dict(skip_layers=[0.5]), r"skip_layers is \(0.5,\)"),
    (dict(centre_tokens=0), "centre_tokens is 0"),
]


@pytest.mark.parametrize("overrides, message", BAD_CONFIG)
def test_bad_config_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        int4kv.Int4KVConfig(**overrides)


def test_unknown_option_is_named():
    with pytest.raises(TypeError, match="kv_bitz"):
        int4kv.Int4Cache(tiny_qwen2().config, kv_bitz=4)
    with pytest.raises(TypeError, match="config is a dict"):
        int4kv.Int4Cache(tiny_qwen2().config, {"bits": 4})


def test_config_as_plain_values():
    config = int4kv.Int4KVConfig(bits=(8, 4), recent=8, skip_layers=[1], layer_bits={0: 8, -1: (5, 3)}, rotation=["hadamard", None])
    assert int4kv.Int4KVConfig(**config.to_dict()) == config


def test_bad_chunks_are_refused_before_anything_is_written():
    target = layer(max_cache_len=20)
    k, v = chunk(10)
    target.update(k, v)
    before = {name: t.clone() for name, t in target.tensors().items()}
    bad = [((k.long(), v), "key_states has shape .* dtype torch.int64"), ((k[0], v[0]), "key_states has shape"),
           ((k[:, :1], v[:, :1]), r"layer 0 of this cache holds \[1, 2, tokens, 64\]"),
           ((k[..., :32], v[..., :32]), "this cache holds"), ((k, v[:, :, :3]), "value_states has shape"),
           ((torch.cat([k, k], 2), torch.cat([v, v], 2)), "max_cache_len is 20; this chunk would make the sequence 30 tokens long")]
    for states, message in bad:
        with pytest.raises(ValueError, match=message):
            target.update(*states)
    assert target.get_seq_length() == 10
    assert all(torch.equal(before[name], t) for name, t in target.tensors().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_check_finite(value):
    k, v = chunk(4)
    v[0, 1, 2, 3] = value
    strict, lenient = layer(check_finite=True), layer()
    with pytest.raises(ValueError, match="value_states of layer 0 has NaN or infinity"):
        strict.update(k, v)
    assert strict.get_seq_length() == 0
    lenient.update(k, v)
    assert lenient.codes.tensors[3][0, 1, 2].isnan().all() and lenient.codes.tensors[3][0, 1, 1].isfinite().all()


def test_group_size_must_divide_head_dim():
    with pytest.raises(ValueError, match="group_size is 64; accepted: divisors of head_dim, 96"):
        layer(group_size=64).update(*chunk(3, head_dim=96))
