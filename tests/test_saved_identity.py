"""A file of int4kv.save_cache is refused by name where another model, recipe or prompt would go on from it, or something else was to be saved."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from saved_caches import filled
from tiny_models import MAKERS, random_ids, tiny_qwen2

import int4kv
from int4kv.naming import CACHE, as_argument
from int4kv.saved import container, identity

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
        assert torch.equal(model.generate(longer, **as_argument(cache), max_new_tokens=4, do_sample=False)[:, :67], longer)
        int4kv.save_cache(cache, saved, model)
        with pytest.raises(ValueError, match="was saved without input_ids; accepted: input_ids None"):
            int4kv.load_cache(saved, model, input_ids=longer)


@pytest.mark.cpu_only
def test_what_is_no_filled_int4_cache_is_not_saved(model, tmp_path):
    from transformers import DynamicCache

    empty = int4kv.Int4Cache(model.config)
    uneven = filled(model, random_ids(1, 9), config=int4kv.Int4KVConfig())
    uneven.layers[0].crop(-1)
    for cache, error, message in ((DynamicCache(), TypeError, "cache is a DynamicCache; accepted: Int4Cache, Int4PagedCache"),
                                  (empty, ValueError, r"cache holds \[0\] tokens"), (uneven, ValueError, r"cache holds \[8, 9\] tokens")):
        with pytest.raises(error, match=message):
            int4kv.save_cache(cache, tmp_path / "saved", model)
    others = {name: make for name, make in MAKERS.items() if not isinstance(model, type(make()))}
    with pytest.raises(ValueError, match=f"{CACHE} was made for a model with"):
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
