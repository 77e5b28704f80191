"""Bits per layer under a budget: the greedy choice, bytes counted as they are held, and that it beats the same bits everywhere."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from devices import DEVICE, on_device
from tiny_models import random_ids, tiny_gemma3, tiny_qwen2

import int4kv
from int4kv import models
from int4kv.calibration.budget import TOKENS, WIDTHS, Costs, Meter, choose_bits, greedy
from int4kv.evaluation.evaluate import evaluate, windows
from int4kv.progress import bars
from int4kv.evaluation.recipes import Recipe

TEXT = (Path(__file__).parent / "data" / "heldout.txt").read_text()
MAKERS = (tiny_qwen2, tiny_gemma3)


def costs_of(model, config=int4kv.Int4KVConfig()):
    with bars(False) as bar:
        layers = list(range(model.config.num_hidden_layers))
        return Costs(Meter(model, random_ids(1, 48), config, bar), layers)


def bits_held(model, config):
    return 16 / int4kv.report(int4kv.Int4Cache(model.config, config), TOKENS).ratio


@pytest.mark.cpu_only
def test_greedy_buys_the_most_kl_per_byte():
    kl = {("a", 3): 9.0, ("a", 4): 8.9, ("a", 5): 2.0, ("a", 8): 0.0, ("b", 3): 4.0, ("b", 4): 1.0, ("b", 5): 0.5, ("b", 8): 0.0}
    costs = SimpleNamespace(sides=["a", "b"], kl=kl, bytes={(side, width): width - 3 for side in "ab" for width in WIDTHS})

    def held(chosen):
        return sum(costs.bytes[change] for change in chosen.items())

    steps = [greedy(costs, lambda chosen: held(chosen) <= limit) for limit in (0, 1, 2, 3, 10)]
    assert steps == [dict(a=a, b=b) for a, b in ((3, 3), (3, 4), (5, 3), (5, 4), (8, 8))]  # from 3 to 5 at once, where 4 buys nothing
    assert greedy(costs, lambda chosen: True, lambda chosen: chosen["b"] == 4) == dict(a=5, b=4)


@pytest.mark.cpu_only
@pytest.mark.parametrize("make", MAKERS)
def test_bytes_are_those_of_the_report(make):
    """Sliding layers, which hold few tokens whatever the context, included."""
    model, generator = make(), torch.Generator().manual_seed(0)
    costs = costs_of(model)
    for _ in range(5):
        chosen = {side: WIDTHS[int(torch.randint(4, (1,), generator=generator))] for side in costs.sides}
        config = int4kv.Int4KVConfig(layer_bits=costs.layer_bits(chosen))
        assert costs.bits_per_value(chosen) == pytest.approx(bits_held(model, config), rel=1e-12)


@pytest.mark.parametrize("make", MAKERS)
def test_a_budget_of_bits_is_kept_and_used(make):
    model, ids = make(), random_ids(2, 96)
    limit = bits_held(model, int4kv.Int4KVConfig())
    config = int4kv.calibrate(model, ids, budget={"bits": limit, "tokens": 96})
    assert len(config.layer_bits) == model.config.num_hidden_layers and config.centre == "calibrated"
    assert 0.95 * limit < bits_held(model, config) <= limit
    with int4kv.patched(model, config):
        model.generate(ids, max_new_tokens=3)


@pytest.mark.cpu_only
def test_a_budget_of_kl_is_kept_with_fewer_bytes_than_eight_bits_take():
    model, ids = tiny_qwen2(), random_ids(1, 200)
    uniform = evaluate(model, ids, [Recipe("4", int4kv.Int4KVConfig())], chunk=200)["4"].kl
    found = choose_bits(model, [ids], int4kv.Int4KVConfig(), {"kl": uniform, "tokens": 200})
    assert found.kl <= uniform and found.bits_per_value <= bits_held(model, int4kv.Int4KVConfig())
    again = evaluate(model, ids, [Recipe("found", found.config)], chunk=200)["found"].kl
    assert again == pytest.approx(found.kl, rel=1e-6)


@pytest.mark.cpu_only
def test_layers_that_are_not_quantised_stay_so():
    model, ids = tiny_qwen2(), random_ids(1, 48)
    found = choose_bits(model, [ids], int4kv.Int4KVConfig(skip_layers=(-1,)), {"bits": 20, "tokens": 48})
    assert [layer for layer, _ in found.config.layer_bits] == [0] and found.config.skip_layers == (-1,)


@pytest.mark.cpu_only
def test_the_table_names_every_layer(capsys):
    choose_bits(tiny_qwen2(), [random_ids(1, 48)], int4kv.Int4KVConfig(), {"bits": 20, "tokens": 48}, progress=True)
    shown = capsys.readouterr().out
    assert "K bits" in shown and "bits per value at 4096 tokens" in shown and "the best with the same bits in all layers: K 8, V 8" in shown


@pytest.mark.cpu_only
@pytest.mark.parametrize("budget, message", [
    (4.3, "budget is 4.3; accepted: {'bits': bits per value} or {'kl': nats}"), ({}, "budget is {}"),
    (dict(bits=4, kl=1), "budget is {'bits'"),
    (dict(bits=-1), "budget is {'bits': -1}"), (dict(bits=4, layers=2), "budget is "),
    (dict(bits=2.0), "budget is 2.0 bits per value; accepted: 3.* or more for this model and config"),
    (dict(kl=1e-12), "budget is a KL of 1e-12; accepted: about .* or more"),
])
def test_a_budget_that_cannot_be_is_named(budget, message):
    with pytest.raises(ValueError, match=message):
        choose_bits(tiny_qwen2(), [random_ids(1, 48)], int4kv.Int4KVConfig(), budget)


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", models.NAMES)
def test_it_beats_every_uniform_recipe_of_no_fewer_bytes(name):
    """Chosen on one text, measured on another: KL at most half that of the best recipe with the same bits in all layers."""
    model, tokenizer = models.load(name, DEVICE)
    text = dict(texts=models.HELDOUT.read_text(), tokenizer=tokenizer, length=512, tokens=4096)
    calibrated = int4kv.calibrate(model, **text)
    limit = bits_held(model, calibrated)
    chosen = int4kv.calibrate(model, **text, budget=dict(bits=limit, tokens=512))
    uniform = [Recipe(f"{k}/{v}", calibrated.with_overrides(bits=(k, v))) for k, v in ((4, 4), (5, 3))]
    ids = on_device(windows(tokenizer, TEXT, 512, 2))
    found = evaluate(model, ids, [Recipe("chosen", chosen), *uniform], chunk=512)
    print({key: value.kl for key, value in found.items()})
    assert bits_held(model, chosen) <= min(bits_held(model, recipe.config) for recipe in uniform)
    assert found["chosen"].kl < 0.5 * min(found[recipe.name].kl for recipe in uniform)
