"""A model spread over two devices by accelerate: every layer's cache lives where the layer does, and the text is that of one device."""

import pytest
import torch
from accelerate import dispatch_model
from devices import DEVICE
from tiny_models import MAKERS, random_ids

import int4kv
from int4kv.naming import as_argument

pytestmark = pytest.mark.gpu_only  # beside the CPU
NEW = 24
ON_THE_CPU = 1e-3  # the CPU's attention takes 16-bit integers, 5e-4 a layer, and what it moves may round to another code further up


def halves(model) -> dict:
    """A device map: all but the last layer on the CPU, that one and the head on the device."""
    last = model.config.num_hidden_layers - 1
    parts = {f"model.layers.{i}": "cpu" for i in range(last)} | {f"model.layers.{last}": DEVICE.type}
    return parts | {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": DEVICE.type, "lm_head": DEVICE.type}


@pytest.fixture(params=MAKERS)
def spread(request):
    """(a model over two devices, the same on one)."""
    first, second = (MAKERS[request.param](tie_word_embeddings=False) for _ in range(2))
    return dispatch_model(first.to("cpu"), halves(first), main_device="cpu"), second


def greedy(model, ids, **options):
    return model.generate(ids.to(model.device), do_sample=False, **({"max_new_tokens": NEW} | options)).cpu()


def padded_batch():
    ids, mask = random_ids(3, 60), torch.ones(3, 60, dtype=torch.long)
    mask[0, :13], mask[2, :5] = 0, 0
    return ids.cpu(), mask


@pytest.mark.parametrize("options", [{}, dict(prefill="packed"), dict(bits=16), dict(codebook="uniform", recent=0)], ids=str)
def test_the_text_is_that_of_one_device(spread, options):
    both, alone = (int4kv.patch(model, **options) for model in spread)
    assert torch.equal(greedy(both, random_ids(1, 60)), greedy(alone, random_ids(1, 60)))


def test_each_layers_cache_is_where_the_layer_is(spread):
    both, _ = spread
    cache = int4kv.Int4Cache(both.config)
    greedy(int4kv.patch(both), random_ids(2, 60), **as_argument(cache))
    for layer, module in zip(cache.layers, both.model.layers, strict=True):
        home = module.self_attn.k_proj.weight.device
        assert {tensor.device for tensor in layer.tensors().values()} == {home}, f"layer {layer.layer_idx} is on {home}"
    assert {layer.device.type for layer in cache.layers} == {"cpu", DEVICE.type}
    assert cache.memory_footprint() > 0 and int4kv.report(cache)


@pytest.mark.parametrize("way", ["padding", "beams", "static"])
def test_ways_to_generate(spread, way):
    both, alone = (int4kv.patch(model) for model in spread)
    ids, mask = padded_batch()
    given = dict(padding={}, beams=dict(num_beams=3), static=dict(cache_implementation="static"))[way]
    found, expected = (greedy(model, ids, attention_mask=mask.to(model.device), **given) for model in (both, alone))
    assert torch.equal(found, expected)


def test_a_calibration_follows_its_layer(spread):
    both, alone = spread
    config = int4kv.calibrate(alone, random_ids(1, 200), rotation="balanced").with_overrides(prefill="packed")
    with torch.no_grad():
        found, expected = (int4kv.patch(model, config)(random_ids(1, 60).to(model.device)).logits.cpu() for model in spread)
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    assert error < ON_THE_CPU, error
