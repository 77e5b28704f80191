"""int4kv eval: what it measures goes through the codes, agrees with decoding token by token, and adds up."""

import math

import pytest
import torch
from devices import DEVICE
from test_quality import TEXT
from tiny_models import random_ids

import int4kv
from int4kv import models, ops
from int4kv.evaluation.divergence import divergence, greedy
from int4kv.evaluation.evaluate import PIECE, Quality, evaluate, quality, steps, windows
from int4kv.evaluation.intervals import estimate, student_t
from int4kv.evaluation.needle import DEPTHS, make_haystack, needle
from int4kv.evaluation.recipes import Recipe, parse_recipes

PLAIN = "default:codebook=absmax,rotation=none,centre=none,recent=0"


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = models.load("tiny-qwen2", DEVICE, torch.float32)
    return model, tokenizer


def one(model, ids, recipe, **options):
    [recipe] = parse_recipes(recipe)
    return evaluate(model, ids, [recipe], **options)[recipe.name]


# ---- through the codes ---------------------------------------------------------------------------------------------


def spoil_codes(monkeypatch):
    """Every code is overwritten as soon as it is stored."""
    write = ops.quantize_kv

    def spoiled(k, v, k_codes, k_scales, v_codes, v_scales, position, **options):
        write(k, v, k_codes, k_scales, v_codes, v_scales, position, **options)
        for codes in (k_codes, v_codes):
            codes.bitwise_not_()

    monkeypatch.setattr(ops, "quantize_kv", spoiled)


@pytest.mark.parametrize("chunk", [16, 128])
def test_spoiled_codes_spoil_the_result(model, monkeypatch, chunk):
    ids = random_ids(2, 150)
    before = one(model, ids, "default", chunk=chunk)
    spoil_codes(monkeypatch)
    after = one(model, ids, "default", chunk=chunk)
    assert after.kl > 10 * before.kl
    # The first 32 tokens see nothing but exact rows; nothing that was spoiled can reach them.
    assert torch.equal(after.token_kl[:, :32], before.token_kl[:, :32])
    assert (after.token_kl[:, 40:] != before.token_kl[:, 40:]).float().mean() > 0.99


def test_what_the_ring_covers_is_not_read_from_codes(model, monkeypatch):
    ids = random_ids(1, 100)
    before = one(model, ids, "default:recent=128")
    spoil_codes(monkeypatch)
    assert torch.equal(one(model, ids, "default:recent=128").nll, before.nll)


@pytest.mark.cpu_only
@pytest.mark.parametrize("recipe", ["default", "k8v4", "3bit:recent=0,centre_tokens=1"])
def test_chunked_is_token_by_token(tiny, recipe):
    """But for codes that flip where matrix products of another size round differently."""
    model, tokenizer = tiny
    ids = windows(tokenizer, TEXT, 300, 1)
    chunked, stepped = one(model, ids, recipe), one(model, ids, recipe, chunk=1)
    assert chunked.kl == pytest.approx(stepped.kl, rel=0.1)
    assert (chunked.nll - stepped.nll).mean().abs() < 0.1 * (stepped.nll - stepped.fp_nll).abs().mean()


@pytest.mark.parametrize("recipe", ["default", "k8v4"])
def test_it_agrees_with_one_token_at_a_time(model, recipe):
    ids = random_ids(2, 60)
    with int4kv.patched(model, int4kv.preset(recipe)):
        theirs = quality(model, ids, int4kv.Int4Cache(model.config, int4kv.preset(recipe)))
    ours = one(model, ids, recipe, chunk=1)
    torch.testing.assert_close(ours.token_kl, theirs.token_kl, atol=1e-5, rtol=0.02)  # the references differ by rounding
    assert (ours.tokens, theirs.tokens) == (2 * 59, 2 * 59)


def test_the_models_own_cache_is_the_reference(model):
    found = one(model, random_ids(2, 150), "fp", chunk=50)
    assert found.kl < 1e-7 and found.agreement_estimate.mean == 1.0  # fed in other chunks: rounding is all there is
    assert found.change == pytest.approx(0.0, abs=1e-5)


def test_recipes_do_not_touch_each_other_nor_the_model(model):
    ids = random_ids(3, 140)
    recipes = parse_recipes("default,3bit,saw-int4,fp")
    calls = []
    together = evaluate(model, ids, recipes, chunk=32, batch=2, step=lambda: calls.append(1))
    assert list(together) == ["default", "3bit", "saw-int4", "fp"] and len(calls) == steps(ids, recipes, 32, 2)
    assert torch.equal(together["3bit"].nll, one(model, ids, "3bit", chunk=32, batch=2).nll)
    assert not int4kv.is_patched(model)


def test_a_patched_model_is_refused(model):
    int4kv.patch(model)
    with pytest.raises(ValueError, match="model is patched; accepted: one that is not"):
        one(model, random_ids(1, 8), "default")


# ---- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.cpu_only
def test_percentile_change_and_agreement():
    kl = torch.arange(2000.0).view(2, 1000)
    nll, fp_nll = torch.full((2, 1000), math.log(11.0)), torch.full((2, 1000), math.log(10.0))
    found = Quality(nll, fp_nll, kl, kl < 500)
    assert found.perplexity == pytest.approx(11) and found.fp_perplexity == pytest.approx(10) and found.change == pytest.approx(0.1)
    assert found.kl_tail == 1997.0 and found.kl == pytest.approx(999.5)
    assert found.agreement_estimate.mean == 0.25
    assert found.change_estimate.mean == pytest.approx(0.1) and found.change_estimate.low == pytest.approx(0.1)


@pytest.mark.cpu_only
def test_paired_differences_are_narrower_than_their_parts():
    """Windows differ in difficulty alike for all recipes; a pair cancels it."""
    difficulty = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None].expand(4, 10)
    worse, better = (Quality(difficulty, difficulty, difficulty + extra, difficulty > 0) for extra in (0.1, 0.0))
    difference = worse.kl_difference(better)
    assert difference.mean == pytest.approx(0.1) and difference.low > 0
    assert difference.high - difference.low < 1e-6 < worse.kl_estimate.high - worse.kl_estimate.low


@pytest.mark.cpu_only
@pytest.mark.parametrize("degrees", [1, 2, 5, 17, 30, 31, 45, 120])
def test_student_t_is_the_percentile_of_its_distribution(degrees):
    """The density, integrated from 0 to the value with the substitution x = tan(u), is 0.475."""
    u = torch.linspace(0, math.atan(student_t(degrees)), 200_001, dtype=torch.float64)
    log_norm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    density = torch.exp(log_norm - (degrees + 1) / 2 * torch.log1p(u.tan() ** 2 / degrees)) / u.cos() ** 2
    assert torch.trapezoid(density, u).item() == pytest.approx(0.475, abs=1e-4)


@pytest.mark.cpu_only
def test_intervals():
    found = estimate(torch.tensor([1.0, 2.0, 3.0]))
    assert (found.mean, found.high - found.mean) == pytest.approx((2.0, 4.303 / 3**0.5))
    assert estimate(torch.tensor([5.0])).low is None


def test_bits_count_what_the_cache_holds(model):
    recipe = parse_recipes("k5v4:sinks=3")[0]
    values = sum(row.fp16_bytes / 2 for row in int4kv.report(recipe.new_cache(model, 100), 4096).layers)
    held = int4kv.report(recipe.new_cache(model, 100), 4096).bytes
    assert recipe.bits_per_value(model, 4096) == pytest.approx(8 * held / values)
    assert Recipe("fp", None).bits_per_value(model, 4096) == 16


# ---- needles and continuations -------------------------------------------------------------------------------------


@pytest.mark.cpu_only
def test_a_haystack_hides_its_needle_where_it_says(tiny):
    tokenizer = tiny[1]
    text = windows(tokenizer, TEXT, 2048, 1)[0]
    stack = make_haystack(tokenizer, text, 256, trials=2)
    assert stack.input_ids.shape == (2 * len(DEPTHS), 256)
    for ids, answer, depth in zip(stack.input_ids, stack.answers, stack.depths):
        name = tokenizer.decode(ids[-answer:]).strip()
        written = tokenizer.decode(ids)
        place = written.index(name) / len(written)
        assert written.count(name) == 2 and abs(place - depth) < 0.25, (depth, place)
    without = make_haystack(tokenizer, text, 256, trials=1, present=False)
    assert all(tokenizer.decode(ids).count(tokenizer.decode(ids[-n:]).strip()) == 1 for ids, n in zip(without.input_ids, without.answers))


@pytest.mark.cpu_only
def test_needles_are_found_through_good_codes_alone(tiny):
    model, tokenizer = tiny
    text = windows(tokenizer, TEXT, 2048, 1)[0]
    found = needle(model, tokenizer, text, parse_recipes(f"fp,default,{PLAIN}"), [256], trials=3)
    share = {name: retrieval.score.mean().item() for name, retrieval in found.items()}
    print(share)
    assert list(found) == ["fp", "no needle", "default", PLAIN] and found["fp"].score.shape == (1, len(DEPTHS))
    assert share["fp"] > 0.8 and share["no needle"] < 0.3
    assert share["default"] > share["fp"] - 0.05 and share[PLAIN] < 0.2
    with pytest.raises(ValueError, match="lengths has 4096; accepted: 128 to 2048"):
        needle(model, tokenizer, text, [], [4096])


def test_divergence_is_where_greedy_decoding_parts(model):
    prompts, tokens = random_ids(3, 70), 24
    [recipe] = parse_recipes("3bit:recent=0")
    own = greedy(model, prompts, tokens)
    with recipe.applied(model):
        theirs = model.generate(prompts, do_sample=False, max_new_tokens=tokens, attention_mask=torch.ones_like(prompts))[:, 70:]
    found = divergence(model, prompts, [recipe], tokens, chunk=PIECE)[recipe.name]
    same = (own == theirs).long().cumprod(1).sum(1).cpu()
    assert torch.equal(found.first, same)
    assert found.never == (same == tokens).double().mean() and found.median == same.double().quantile(0.5)


def test_the_models_own_cache_never_diverges(model):
    found = divergence(model, random_ids(2, 40), parse_recipes("fp"), tokens=20)["fp"]
    assert found.first.tolist() == [20, 20] and found.never == 1.0
