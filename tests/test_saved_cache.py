"""int4kv.save_cache and load_cache: a cache that goes on bit for bit as if it had never been saved."""

import copy

import pytest
import torch
from devices import DEVICE
from saved_caches import check_same_future, filled, forward
from tiny_models import random_ids, tiny_qwen2

import int4kv
from int4kv.naming import cache_of

TOKENS = 300
RECIPES = {
    "default": {}, "finer keys": dict(bits=(8, 3)), "bits by layer": dict(layer_bits={0: 8, -1: (5, 3)}), "skipped": dict(skip_layers=(0,)),
    "exact": dict(bits=16), "start": dict(start=100, recent=0), "sinks": dict(sinks=4), "groups": dict(group_size=32, codebook="asymmetric"),
    "no ring": dict(recent=0), "no centre": dict(centre=None, rotation=None), "value centre": dict(v_centre="prompt", centre_tokens=50),
    "packed": dict(prefill="packed", codebook="uniform"), "limited": dict(max_cache_len=200),
}
LENGTHS = [("default", 1), ("default", 45), *[(recipe, tokens) for recipe in RECIPES for tokens in (20, 120)]]


@pytest.mark.parametrize("recipe, tokens", LENGTHS)
def test_a_loaded_cache_goes_on_bit_for_bit(model, recipe, tokens, tmp_path):
    """Short prompts, whose centre is not settled, and prompts beyond the sliding window; full and sliding layers."""
    with int4kv.patched(model, **RECIPES[recipe]):
        ids = random_ids(1, tokens)
        cache = filled(model, ids)
        int4kv.save_cache(cache, tmp_path / "saved", model, input_ids=ids)
        check_same_future(model, cache, int4kv.load_cache(tmp_path / "saved", model, input_ids=ids))


@pytest.mark.parametrize("tokens", [20, 120])
def test_a_left_padded_batch_goes_on_bit_for_bit(model, tokens, tmp_path):
    ids, mask = random_ids(3, tokens), torch.ones(3, tokens, dtype=torch.long, device=DEVICE)
    mask[0, :13], mask[2, :5] = 0, 0
    with int4kv.patched(model):
        cache = filled(model, ids, mask)
        int4kv.save_cache(cache, tmp_path / "saved", model, input_ids=ids)
        check_same_future(model, cache, int4kv.load_cache(tmp_path / "saved", model), mask)


@pytest.mark.parametrize("options", [dict(v_centre=True), dict(rotation="balanced"), dict(channel_lambda=True)])
def test_calibrated_tensors_are_asked_for_by_their_hash(model, options, tmp_path):
    config = int4kv.calibrate(model, random_ids(2, 64), **options)
    other = int4kv.calibrate(model, random_ids(2, 64, seed=8), **options)
    ids = random_ids(2, 60)
    with int4kv.patched(model, config):
        cache = filled(model, ids)
        int4kv.save_cache(cache, tmp_path / "saved", model)
        check_same_future(model, cache, int4kv.load_cache(tmp_path / "saved", model))
    with pytest.raises(ValueError, match="saved with a calibration, which it does not hold"):
        int4kv.load_cache(tmp_path / "saved", model)
    assert int4kv.load_cache(tmp_path / "saved", model, config=config).config is config
    with pytest.raises(ValueError, match="saved with config calibration '[0-9a-f]{64}'; accepted here: '[0-9a-f]{64}'"):
        int4kv.load_cache(tmp_path / "saved", model, config=other)


def test_after_generating_wrapping_around_and_recording(model, tmp_path):
    """What generate returned, a ring that has wrapped around, and one that assisted decoding has made longer."""
    with int4kv.patched(model, max_cache_len=TOKENS):
        out = model.generate(random_ids(2, 30), max_new_tokens=90, do_sample=False, return_dict_in_generate=True)
        int4kv.save_cache(cache_of(out), tmp_path / "saved", model, input_ids=out.sequences)
        loaded = int4kv.load_cache(tmp_path / "saved", model, input_ids=out.sequences)
        assert loaded.get_seq_length() == 119
        check_same_future(model, cache_of(out), loaded)
        cache = filled(model, random_ids(1, 100))
        cache.activate_past_recording()
        for _ in range(60):
            forward(model, random_ids(1, 1), cache)
        int4kv.save_cache(cache, tmp_path / "saved", model)
        for layer in cache.layers:
            layer.record_past = False
        check_same_future(model, cache, int4kv.load_cache(tmp_path / "saved", model), steps=(1, 1, 5, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(model, dtype, tmp_path):
    half = copy.deepcopy(model).to(dtype)
    with int4kv.patched(half, skip_layers=(0,)):
        cache = filled(half, random_ids(1, 20))
        int4kv.save_cache(cache, tmp_path / "saved", half)
        check_same_future(half, cache, int4kv.load_cache(tmp_path / "saved", half))
        with pytest.raises(ValueError, match="accepted here: 'torch.float32'"), int4kv.patched(model, skip_layers=(0,)):
            int4kv.load_cache(tmp_path / "saved", model)


@pytest.mark.cpu_only
def test_only_the_tokens_held_are_written_and_there_is_room_again(tmp_path):
    model = tiny_qwen2()
    cache = int4kv.Int4Cache(model.config).expect(20_000)
    with int4kv.patched(model):
        forward(model, random_ids(1, 100), cache)
        int4kv.save_cache(cache, tmp_path / "saved", model)
        loaded = int4kv.load_cache(tmp_path / "saved", model)
    packed = 100 * 2 * 2 * 2 * (32 // 2 + 2)  # layers, heads, K and V; head_dim 32: codes and one fp16 scale
    exact = (64 + 64 * 2) * 2 * 2 * 2 * 32 * 2  # the ring in fp16, 64 early rows of both in fp32
    assert packed < (tmp_path / "saved").stat().st_size < packed + exact + 8192 < cache.memory_footprint() / 4
    assert [layer.codes.capacity for layer in loaded.layers] == [356, 356]


def test_a_model_that_is_not_patched_takes_the_config_of_the_file(model, tmp_path):
    config = int4kv.Int4KVConfig(bits=(8, 4), layer_bits={0: 5}, recent=16)
    cache = filled(model, random_ids(1, 50), config=config)
    int4kv.save_cache(cache, tmp_path / "saved", model)
    loaded = int4kv.load_cache(tmp_path / "saved", model)
    assert loaded.config == config
    check_same_future(model, cache, loaded)


@pytest.mark.gpu_only
def test_each_layer_goes_where_the_model_has_it(tmp_path):
    model = tiny_qwen2()
    int4kv.save_cache(filled(model, random_ids(1, 50), config=int4kv.Int4KVConfig()), tmp_path / "saved", model)
    model.model.layers[1].to("cpu")
    for device, expected in ((None, [DEVICE.type, "cpu"]), ("cpu", ["cpu", "cpu"])):
        loaded = int4kv.load_cache(tmp_path / "saved", model, device=device)
        assert [{t.device.type for t in layer.tensors().values()} for layer in loaded.layers] == [{name} for name in expected]


@pytest.mark.cpu_only
def test_layers_on_the_disk_need_a_device(tmp_path):
    model = tiny_qwen2()
    cache = filled(model, random_ids(1, 50), config=int4kv.Int4KVConfig())
    model.model.layers[1].to("meta")
    int4kv.save_cache(cache, tmp_path / "saved", model)
    with pytest.raises(ValueError, match="device is None and the model has layers on the disk; accepted: the device that they run on"):
        int4kv.load_cache(tmp_path / "saved", model)
    assert int4kv.load_cache(tmp_path / "saved", model, device="cpu").get_seq_length() == 50
