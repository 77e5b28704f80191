"""Batches that change: beams that move, sequences that finish and leave, padding on either side; and how many bytes that copies."""

import random
import sys
from pathlib import Path

import pytest
import torch
from cached_layers import chunk, fill, layer
from devices import DEVICE, on_device
from tiny_models import random_ids, tiny_qwen2

import int4kv
from int4kv.naming import as_argument, cache_of
from int4kv.saved.layers import describe

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from copies import BytesWritten  # noqa: E402

def append(target, tokens, seed):
    """The same tokens in another sequence are other ones: beams part."""
    fill(target, *chunk(tokens, batch=target.batch_size, seed=seed), [tokens])


def beams_of_one_prompt(tokens, beams=4, **options):
    target = layer(**options)
    k, v = chunk(tokens)
    fill(target, k.repeat(beams, 1, 1, 1), v.repeat(beams, 1, 1, 1), [tokens])
    return target


def held(target):
    return describe(target)[1]


OPTIONS = {"full": dict(), "sliding": dict(sliding_window=24), "unsettled": dict(centre_tokens=90), "sinks": dict(sinks=4, v_centre="prompt"),
           "exact": dict(bits=16), "start": dict(start=70, recent=0), "planes": dict(bits=(5, 3), codebook="asymmetric")}


@pytest.mark.parametrize("options", OPTIONS)
def test_any_reorders_hold_what_whole_copies_would(options):
    """Against index_select on every tensor held, after every one of 40 turns of tokens, crops and beams."""
    choices = random.Random(1)
    ours, whole = (beams_of_one_prompt(20, **OPTIONS[options]) for _ in range(2))
    for turn in range(40):
        tokens = choices.choice((1, 1, 1, 3))
        beams = choices.choice(([0, 1, 2, 3], [0, 0, 1, 3], [3, 2, 1, 0], [1, 1, 1, 1], [choices.randrange(4) for _ in range(4)]))
        for target in (ours, whole):
            append(target, tokens, seed=turn)
            if turn % 7 == 6:
                target.crop(-2)
        ours.reorder_cache(torch.tensor(beams))
        rows = torch.tensor(beams, device=DEVICE)
        whole.map(lambda t: t.index_select(0, rows))
        expected = held(whole)
        assert all(torch.equal(t, expected[name]) for name, t in held(ours).items()), f"turn {turn}"


def test_sequences_that_stay_are_not_touched():
    target = beams_of_one_prompt(100)
    append(target, 1, seed=1)
    before = {name: (t.data_ptr(), t.clone()) for name, t in target.tensors().items()}
    with BytesWritten() as written:
        target.reorder_cache(torch.arange(4))
    assert written.bytes == 0 and target.next is not None
    target.reorder_cache(torch.tensor([0, 1, 2, 2]))
    for name, t in target.tensors().items():
        assert t.data_ptr() == before[name][0]
        assert torch.equal(t[:3], before[name][1][:3])


@pytest.mark.cpu_only
@torch.no_grad()
def test_a_reorder_copies_what_was_generated_not_the_prompt():
    """4 beams, 4096 tokens of prompt, 64 generated: the prompt alone is 2.2 MB a layer, of which no step writes a quarter."""
    target = beams_of_one_prompt(4096)
    used = 4 * 2 * 2 * 4096 * (32 + 2)
    choices, counts = random.Random(2), []
    for turn in range(64):
        append(target, 1, seed=turn)
        with BytesWritten() as written:
            target.reorder_cache(torch.tensor(sorted(choices.randrange(4) for _ in range(4))))
        counts.append(written.bytes)
    exact = 2 * 3 * 2 * 2 * 64 * 64 * 2  # the ring of three moved sequences, read and written, K and V, 2 heads of 64 channels in fp16
    generated = 2 * 3 * 2 * 2 * 64 * (32 + 2)
    assert max(counts) <= exact + generated + 4096 < used / 4


@pytest.mark.cpu_only
@pytest.mark.parametrize("change, sequences", [
    (lambda t: t.batch_select_indices(torch.tensor([0, 2])), 2), (lambda t: t.batch_select_indices(torch.tensor([True, False, True, True])), 3),
    (lambda t: t.batch_repeat_interleave(2), 8)])
def test_selecting_copies_the_tokens_held_not_the_buffers(change, sequences):
    target = beams_of_one_prompt(100, max_cache_len=20_000)
    capacity, each = target.nbytes / 4, 2 * 2 * (100 * (32 + 2) + 64 * 64 * (2 + 4)) + 2 * 64 * 4 + 64
    with BytesWritten() as written:
        change(target)
    assert target.batch_size == sequences and target.nbytes == sequences * capacity
    assert written.bytes <= 2 * sequences * each < target.nbytes / 4


@pytest.mark.parametrize("prefill", ["exact", "packed"])
def test_sequences_that_finish_leave_and_the_others_go_on(model, prefill):
    """Three sequences of very different lengths; as each is done it leaves. The others decode as they would alone."""
    lengths, steps = [3, 40, 90], 12
    prompts = [random_ids(1, n, seed=n) for n in lengths]
    ids = torch.cat([torch.nn.functional.pad(p, (90 - p.shape[1], 0)) for p in prompts])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(p), (90 - p.shape[1], 0)) for p in prompts])
    with int4kv.patched(model, prefill=prefill), torch.no_grad():
        alone = [model.generate(p, max_new_tokens=steps, do_sample=False)[0, -steps:] for p in prompts]
        cache, staying, found = int4kv.Int4Cache(model.config, prefill=prefill), [0, 1, 2], [[], [], []]
        token = ids
        for step in range(steps):
            positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -token.shape[1] :]
            logits = model(token, attention_mask=mask, position_ids=positions, **as_argument(cache)).logits[:, -1]
            token = logits.argmax(-1, keepdim=True)
            for row, name in enumerate(staying):
                found[name].append(int(token[row]))
            keep = [row for row, name in enumerate(staying) if step + 1 < (4, 8, steps)[name]]
            if len(keep) < len(staying):
                cache.batch_select_indices(torch.tensor(keep, device=DEVICE, dtype=torch.long))
                token, mask, staying = token[keep], mask[keep], [staying[row] for row in keep]
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    for name, count in enumerate((4, 8, steps)):
        assert found[name] == alone[name][:count].tolist()


def right_padded(model, prompts, new):
    """Logits of new tokens [batch, steps], one step at a time, behind prompts that are padded on the right; and the cache."""
    width, lengths = max(p.shape[1] for p in prompts), torch.tensor([p.shape[1] for p in prompts], device=DEVICE)
    ids = torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in prompts])
    mask = (torch.arange(width, device=DEVICE) < lengths[:, None]).long()
    cache, found = cache_of(model(ids, attention_mask=mask, use_cache=True)), []
    for step in range(new.shape[1]):
        mask, positions = torch.nn.functional.pad(mask, (0, 1), value=1), (lengths + step)[:, None]
        found.append(model(new[:, step : step + 1], attention_mask=mask, position_ids=positions, **as_argument(cache)).logits)
    return torch.cat(found, 1), cache


@torch.no_grad()
def test_right_padding_is_left_out(model):
    """Exact storage gives what stock transformers gives; packed storage makes each centre of the sequence's own keys."""
    prompts, new = [random_ids(1, n, seed=n) for n in (5, 20, 33)], random_ids(3, 4, seed=9)
    expected, _ = right_padded(model, prompts, new)
    with int4kv.patched(model, bits=16):
        assert torch.allclose(right_padded(model, prompts, new)[0], expected, atol=1e-3)  # fp32 through two layers, another order of sums
    with int4kv.patched(model):
        _, together = right_padded(model, prompts, new[:, :1])
        for row, prompt in enumerate(prompts):
            alone = cache_of(model(prompt, use_cache=True)).layers[0].centres[0]
            assert torch.allclose(together.layers[0].centres[0][row], alone[0], atol=1e-5)


BAD = [("reorder_cache", [0, 4], "beam_idx"), ("reorder_cache", [0, 1, 2, -5], "beam_idx"), ("batch_select_indices", [0.5, 1.0], "indices"),
       ("batch_select_indices", [[0], [1]], "indices"), ("batch_select_indices", [True, False], "indices")]


@pytest.mark.parametrize("method, rows, name", BAD)
def test_rows_that_are_not_there_are_refused_before_anything_moves(method, rows, name):
    cache = int4kv.Int4Cache(tiny_qwen2().config)
    for i in range(2):
        cache.update(*chunk(9, batch=4, head_dim=32), i)
    before = [{n: t.clone() for n, t in held(one).items()} for one in cache.layers]
    with pytest.raises(ValueError, match=rf"{name} is .*; accepted: indices from -4 to 3, or a bool mask \[4\]"):
        getattr(cache, method)(torch.tensor(rows))
    for one, expected in zip(cache.layers, before):
        assert all(torch.equal(t, expected[n]) for n, t in held(one).items())
    for repeats in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="repeats is .*; accepted: 1 or more"):
            cache.batch_repeat_interleave(repeats)


def test_an_empty_cache_has_nothing_to_move():
    cache = int4kv.Int4Cache(tiny_qwen2().config)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_select_indices(torch.tensor([0]))
    cache.batch_repeat_interleave(2)
    assert cache.memory_footprint() == 0


def test_beams_of_a_long_prompt_are_the_beams_of_whole_copies(model, monkeypatch):
    ids = random_ids(2, 150)
    with int4kv.patched(model):
        expected = model.generate(ids, num_beams=4, max_new_tokens=30, do_sample=False)
        monkeypatch.setattr(type(int4kv.Int4Cache(model.config).layers[0]), "reorder_cache",
                            lambda self, rows: self.map(lambda t: t.index_select(0, on_device(rows))))
        assert torch.equal(model.generate(ids, num_beams=4, max_new_tokens=30, do_sample=False), expected)
