"""A patched model is an lm-eval model as it is: HFLM(pretrained=model), here on a task of our own, without a network.

lm-eval scores a text in one forward pass that brings no cache; the patched model makes one, and prefill="packed" reads every key and value
from it, so that the scores are those of decoding.
"""

import json
import socket

import pytest
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from test_quality import TEXT

import int4kv
from int4kv import models
from int4kv.evaluation.recipes import parse_recipes
from int4kv.naming import as_argument

pytestmark = pytest.mark.cpu_only

PLAIN = dict(codebook="absmax", rotation=None, centre=None, recent=0)


@pytest.fixture(scope="module")
def tiny():
    return models.load("tiny-qwen2", dtype=torch.float32)


def passage(at) -> dict:
    context = TEXT[at : at + 1200].rstrip()  # lm-eval would move spaces at its end to the target
    return dict(context=context, target=TEXT[at + len(context) : at + 1300])


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Continue four passages of the held-out text; anything that asks for a network address fails."""

    def refuse(*arguments, **options):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    file = tmp_path / "passages.jsonl"
    file.write_text("\n".join(json.dumps(passage(at)) for at in range(0, 12_000, 3000)))
    files = dict(data_files=dict(test=str(file)), cache_dir=str(tmp_path))
    return ConfigurableTask(config=dict(
        task="continuation", dataset_path="json", dataset_kwargs=files, test_split="test", output_type="loglikelihood", target_delimiter="",
        doc_to_text="{{context}}", doc_to_target="{{target}}",
        metric_list=[dict(metric="perplexity", aggregation="perplexity", higher_is_better=False)]))


def scored(task, model, tokenizer) -> list:
    """lm-eval's log-likelihood of every passage."""
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    found = evaluate(lm=harness, task_dict={"continuation": task}, log_samples=True, bootstrap_iters=0)
    samples = sorted(found["samples"]["continuation"], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0][0] for sample in samples]


@torch.inference_mode()
def token_by_token(task, model, tokenizer, recipe) -> list:
    """The same through the recipe's cache, one token at a time."""
    sums = []
    for doc in task.test_docs():
        context = tokenizer(doc["context"])["input_ids"]
        begin = len(context)
        ids = torch.tensor([context + tokenizer(doc["context"] + doc["target"])["input_ids"][begin:]])  # where lm-eval cuts them
        cache, total = recipe.new_cache(model, ids.shape[1]), 0.0
        with recipe.applied(model):
            for t in range(ids.shape[1] - 1):
                found = model(ids[:, t : t + 1], **as_argument(cache), use_cache=True).logits[0, 0].log_softmax(-1)
                total += found[ids[0, t + 1]].item() if t + 1 >= begin else 0.0
        sums.append(total)
    return sums


def test_a_patched_model_is_measured_through_its_codes(task, tiny):
    model, tokenizer = tiny
    fp = scored(task, model, tokenizer)
    with int4kv.patched(model, prefill="packed"):
        ours = scored(task, model, tokenizer)
    with int4kv.patched(model, prefill="packed", **PLAIN):
        plain = scored(task, model, tokenizer)
    assert all(a != b and abs(a - b) < 2.0 for a, b in zip(ours, fp)), (ours, fp)  # nats, of about 80 over a passage
    assert all(a < b - 50 for a, b in zip(plain, fp)), (plain, fp)


def test_its_scores_are_those_of_decoding_token_by_token(task, tiny):
    model, tokenizer = tiny
    [recipe] = parse_recipes("default")
    with int4kv.patched(model, prefill="packed"):
        at_once = scored(task, model, tokenizer)
    # A code flips where matrix products of another size round differently; over a passage that moves the sum by hundredths.
    assert at_once == pytest.approx(token_by_token(task, model, tokenizer, recipe), abs=0.2)


def test_exact_prefill_would_not_touch_the_codes(task, tiny):
    """Why prefill="packed" is what to evaluate with: one forward pass in exact prefill is the model itself."""
    model, tokenizer = tiny
    fp = scored(task, model, tokenizer)
    with int4kv.patched(model, **PLAIN):
        assert scored(task, model, tokenizer) == pytest.approx(fp, abs=1e-3)
