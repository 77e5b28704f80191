"""int4kv.save_cache and load_cache: a cache that goes on bit for bit as if it had never been saved, or an error that names why not."""

import copy
import json

import pytest
import torch
from devices import DEVICE
from safetensors import safe_open
from tiny_models import MAKERS, random_ids, tiny_qwen2

import int4kv
from int4kv.saved import container, identity

TOKENS = 300
RECIPES = {
    "default": {}, "finer keys": dict(bits=(8, 3)), "bits by layer": dict(layer_bits={0: 8, -1: (5, 3)}), "skipped": dict(skip_layers=(0,)),
    "exact": dict(bits=16), "start": dict(start=100, recent=0), "sinks": dict(sinks=4), "groups": dict(group_size=32, codebook="asymmetric"),
    "no ring": dict(recent=0), "no centre": dict(centre=None, rotation=None), "value centre": dict(v_centre="prompt", centre_tokens=50),
    "packed": dict(prefill="packed", codebook="uniform"), "limited": dict(max_cache_len=200),
}


@torch.no_grad()
def forward(model, ids, cache, mask=None):
    return model(ids, past_key_values=cache, attention_mask=mask, use_cache=True).logits


def filled(model, ids, mask=None, config=None):
    cache = int4kv.Int4Cache(model.config, config or model._int4kv.config)
    forward(model, ids, cache, mask)
    return cache


def check_same_future(model, cache, loaded, mask=None, steps=(1, 1, 40, 1, 1)):
    """Both caches, fed the same: the same logits and the same bytes held, with crops between."""
    total = cache.get_seq_length()
    for turn, tokens in enumerate(steps):
        ids, total = random_ids(cache.batch_size, tokens, seed=10 + turn), total + tokens
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), tokens)], 1)
        assert torch.equal(forward(model, ids, cache, mask), forward(model, ids, loaded, mask)), f"step {turn}"
        if turn == 1:
            for one in (cache, loaded):
                for layer in one.layers:
                    layer.crop(-3)
            total -= 3
            mask = None if mask is None else mask[:, :-3]
    assert total == loaded.get_seq_length()


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
        int4kv.save_cache(out.past_key_values, tmp_path / "saved", model, input_ids=out.sequences)
        loaded = int4kv.load_cache(tmp_path / "saved", model, input_ids=out.sequences)
        assert loaded.get_seq_length() == 119
        check_same_future(model, out.past_key_values, loaded)
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


MISMATCHES = {
    "bits": dict(bits=5), "codebook": dict(codebook="uniform"), "rotation": dict(rotation="srft"), "centre": dict(centre=None),
    "recent": dict(recent=16), "group_size": dict(group_size=32), "layer_bits": dict(layer_bits={0: 8}), "prefill": dict(prefill="packed"),
}


@pytest.fixture
def saved(model, tmp_path):
    """A file of 60 tokens, saved by the patched model with the default config."""
    with int4kv.patched(model):
        int4kv.save_cache(filled(model, random_ids(1, 60)), tmp_path / "saved", model, input_ids=random_ids(1, 60))
    return tmp_path / "saved"


@pytest.mark.cpu_only
@pytest.mark.parametrize("field", MISMATCHES)
def test_another_config_is_refused_by_name(model, saved, field):
    with int4kv.patched(model, **MISMATCHES[field]):
        with pytest.raises(ValueError, match=rf"saved was saved with config {field} .*; accepted here: "):
            int4kv.load_cache(saved, model)


@pytest.mark.cpu_only
def test_limits_may_differ_but_hold(model, saved):
    with int4kv.patched(model, max_cache_len=80, check_finite=True):
        assert int4kv.load_cache(saved, model).config.max_cache_len == 80
    with int4kv.patched(model, max_cache_len=50), pytest.raises(ValueError, match="holds 60 tokens; accepted: 50 at most"):
        int4kv.load_cache(saved, model)


@pytest.mark.cpu_only
@pytest.mark.parametrize("change, name", [
    (dict(rms_norm_eps=1e-5), "model rms_norm_eps"), (dict(num_hidden_layers=3), "model (layer_types|num_hidden_layers)"),
    (dict(num_key_value_heads=4), "model num_key_value_heads"), (dict(seed=1), "model weights")])
def test_another_model_is_refused_by_name(change, name, tmp_path):
    model, other = tiny_qwen2(), tiny_qwen2(**change)
    int4kv.save_cache(filled(model, random_ids(1, 40), config=int4kv.Int4KVConfig()), tmp_path / "saved", model)
    with pytest.raises(ValueError, match=f"saved was saved with {name} .*; accepted here: "):
        int4kv.load_cache(tmp_path / "saved", other)


@pytest.mark.cpu_only
def test_another_rope_and_another_name(model, saved):
    """The same weights under another name are the same model; with another rope they are not."""
    other = copy.deepcopy(model)
    other.config._name_or_path = "elsewhere"
    assert int4kv.load_cache(saved, other).get_seq_length() == 60
    name = "rope_parameters" if hasattr(other.config, "rope_parameters") else "rope_theta"
    setattr(other.config, name, {"rope_type": "default", "rope_theta": 5.0} if name == "rope_parameters" else 5.0)
    with pytest.raises(ValueError, match=f"saved with model {name}"):
        int4kv.load_cache(saved, other)


@pytest.mark.cpu_only
def test_one_changed_matrix_is_another_model(model, saved):
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).mul_(1.001)
    with pytest.raises(ValueError, match="saved with model weights"):
        int4kv.load_cache(saved, other)


@pytest.mark.cpu_only
@pytest.mark.parametrize("ids, message", [
    (random_ids(1, 60, seed=2), "holds other tokens than the first 60 of input_ids"),
    (random_ids(1, 59), r"input_ids has shape \[1, 59\]; accepted: \[1, 60 or more\]"),
    (random_ids(2, 60), r"input_ids has shape \[2, 60\]; accepted: \[1, 60 or more\]"),
    (random_ids(1, 60)[0], r"input_ids has shape \[60\] and dtype torch.int64; accepted: integers \[batch, tokens\]"),
    (random_ids(1, 60).float(), r"dtype torch.float32; accepted: integers"),
])
def test_other_tokens_are_refused_by_name(model, saved, ids, message):
    with int4kv.patched(model), pytest.raises(ValueError, match=message):
        int4kv.load_cache(saved, model, input_ids=ids)
    cache = filled(model, random_ids(1, 60), config=int4kv.Int4KVConfig())
    if ids.shape != (1, 60) or ids.is_floating_point():
        with pytest.raises(ValueError, match=message.replace("59 or", "60 or")):
            int4kv.save_cache(cache, saved, model, input_ids=ids)


def test_a_longer_prompt_is_accepted_and_ids_that_were_not_saved_are_not_guessed(model, saved):
    with int4kv.patched(model):
        longer = torch.cat([random_ids(1, 60), random_ids(1, 7, seed=5)], 1)
        cache = int4kv.load_cache(saved, model, input_ids=longer)
        assert torch.equal(model.generate(longer, past_key_values=cache, max_new_tokens=4, do_sample=False)[:, :67], longer)
        int4kv.save_cache(cache, saved, model)
        with pytest.raises(ValueError, match="was saved without input_ids; accepted: input_ids None"):
            int4kv.load_cache(saved, model, input_ids=longer)


@pytest.mark.cpu_only
def test_what_is_no_filled_int4_cache_is_not_saved(model, tmp_path):
    from transformers import DynamicCache

    empty = int4kv.Int4Cache(model.config)
    uneven = filled(model, random_ids(1, 9), config=int4kv.Int4KVConfig())
    uneven.layers[0].crop(-1)
    for cache, error, message in ((DynamicCache(), TypeError, "cache is a DynamicCache; accepted: Int4Cache"),
                                  (empty, ValueError, r"cache holds \[0\] tokens"), (uneven, ValueError, r"cache holds \[8, 9\] tokens")):
        with pytest.raises(error, match=message):
            int4kv.save_cache(cache, tmp_path / "saved", model)
    others = {name: make for name, make in MAKERS.items() if not isinstance(model, type(make()))}
    with pytest.raises(ValueError, match="past_key_values was made for a model with"):
        int4kv.save_cache(filled(model, random_ids(1, 9), config=int4kv.Int4KVConfig()), tmp_path / "saved", next(iter(others.values()))())
    assert not list(tmp_path.iterdir())


@pytest.mark.cpu_only
def test_the_identity_is_in_the_metadata(model, saved):
    with safe_open(saved, "pt") as opened:
        metadata = opened.metadata()
    found = json.loads(metadata["identity"])
    assert (metadata["format"], metadata["version"]) == ("int4kv prompt cache", "1")
    assert found["format"] == {"version": int4kv.ops.build_info()["format_version"]}
    assert (found["config"]["bits"], found["config"]["codebook"], found["config"]["rotation"]) == (4, "lloyd", "hadamard")
    assert found["tokens"] == {"batch": 1, "count": 60, "sha256": identity.tokens_digest(random_ids(1, 60))}
    assert found["model"]["weights"] == identity.weights_digest(model)
    assert "rope_parameters" in found["model"] or "rope_theta" in found["model"]


@pytest.mark.cpu_only
def test_another_version_is_refused_by_name(model, saved, monkeypatch):
    monkeypatch.setattr(container, "VERSION", "2")
    with pytest.raises(ValueError, match="saved has version '1'; accepted: '2'"):
        int4kv.load_cache(saved, model)
    monkeypatch.undo()
    monkeypatch.setattr(int4kv.ops, "build_info", lambda: {"format_version": 3})
    with pytest.raises(ValueError, match="saved with format version 2; accepted here: 3"):
        int4kv.load_cache(saved, model)


@pytest.mark.cpu_only
def test_tensors_of_another_shape_are_refused(model, saved):
    """A file that is whole, but not what save_cache writes."""
    text, tensors = container.read(saved)
    tensors = {name: t.clone() for name, t in tensors.items()} | {"layers.0.k_scales": tensors["layers.0.k_scales"][:, :, :1].clone()}
    container.write(saved, text, tensors)
    with int4kv.patched(model), pytest.raises(ValueError, match=r"k_scales of layer 0 is torch.float16 \[1, ., 1, 1\]; accepted: torch.float16"):
        int4kv.load_cache(saved, model)
