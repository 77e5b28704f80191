"""Int4StaticCache: the tokens of Int4Cache, one graph for all of them, and what does not fit refused before anything is changed."""

import pytest
import torch
from devices import DEVICE, on_cpu
from tiny_models import random_ids, tiny_qwen2
from torch._dynamo.utils import counters
from transformers import CompileConfig
from test_format import buffers, same_bits

import int4kv
from int4kv import ops
from int4kv.naming import CACHE, as_argument

NEW = 40  # more than the window of a tiny Gemma-3, beyond the ring of exact rows
STATIC = dict(cache_implementation="static")


def generate(model, ids, **options):
    torch.manual_seed(5)
    return model.generate(ids, **(dict(do_sample=False, max_new_tokens=NEW) | options))


def padded(ids=60):
    ids, mask = random_ids(3, ids), torch.ones(3, ids, dtype=torch.long, device=DEVICE)
    mask[0, :13], mask[2, :5] = 0, 0
    return dict(ids=ids.masked_fill(mask == 0, 0), attention_mask=mask)


PROMPTS = {
    "prompt": lambda: dict(ids=random_ids(1, 60)),
    "short prompt": lambda: dict(ids=random_ids(1, 5)),
    "batch": lambda: dict(ids=random_ids(3, 60)),
    "left padding": padded,
    "left padding, short": lambda: padded(20),
    "sampled": lambda: dict(ids=random_ids(1, 60), do_sample=True, num_return_sequences=2),
}
WAYS = PROMPTS | {
    "beams": lambda: dict(padded(), num_beams=3, max_new_tokens=80),
    "chunks": lambda: dict(ids=random_ids(1, 100), prefill_chunk_size=32),
}


def compiling(backend="eager"):
    """generate() compiles by itself on some devices; so on all. A graph that breaks is an error."""
    config = CompileConfig(backend=backend, fullgraph=True, mode=None)
    config._compile_all_devices = True
    torch._dynamo.reset()
    counters.clear()
    return dict(STATIC, compile_config=config)


def graphs():
    return counters["stats"]["unique_graphs"]


def prefilled(model, tokens=60, capacity=64, batch=1):
    cache = int4kv.Int4StaticCache(model.config, capacity)
    with torch.no_grad():
        model(random_ids(batch, tokens), **as_argument(cache))
    return cache


def held(cache):
    return [(layer.length, {name: tensor.clone() for name, tensor in layer.tensors().items()}) for layer in cache.layers]


def assert_same_state(before, after):
    for (length, tensors), (now, others) in zip(before, after, strict=True):
        assert length == now and tensors.keys() == others.keys()
        assert all(same_bits(on_cpu(tensors[name]), on_cpu(others[name])) for name in tensors)


# ---- the same tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_static_gives_the_tokens_of_the_growing_cache(model, way):
    int4kv.patch(model)
    given = WAYS[way]()
    assert torch.equal(generate(model, **given, **STATIC), generate(model, **given))


@pytest.mark.cpu_only
@pytest.mark.parametrize("options", [dict(sinks=4), dict(start=70), dict(recent=0), dict(bits=16), dict(centre=None, prefill="packed"),
                                     dict(bits=(5, 3), group_size=32)], ids=str)
def test_recipes(options):
    model = int4kv.patch(tiny_qwen2(), **options)
    ids = random_ids(2, 60)
    expected = generate(model, ids)
    assert torch.equal(generate(model, ids, **compiling()), expected) and graphs() == 1


def test_a_second_turn(model):
    int4kv.patch(model)
    turns = []
    for cache in (int4kv.Int4Cache(model.config), int4kv.Int4StaticCache(model.config, 200)):
        first = generate(model, random_ids(1, 60), **as_argument(cache))
        turns.append(generate(model, torch.cat([first, random_ids(1, 30, seed=2)], 1), **as_argument(cache)))
    assert torch.equal(*turns)


def test_under_another_attention_it_hands_out_dense_rows(model):
    found = [generate(model, random_ids(1, 60), **as_argument(cache))
             for cache in (int4kv.Int4Cache(model.config), int4kv.Int4StaticCache(model.config, 100))]
    assert torch.equal(*found)


# ---- one graph -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["prompt", "left padding", "sampled"])
def test_generate_compiles_one_graph(model, way):
    int4kv.patch(model)
    given = PROMPTS[way]()
    expected = generate(model, **given)
    assert torch.equal(generate(model, **given, **compiling()), expected)
    assert graphs() == 1 and not counters["graph_break"]


@pytest.mark.cpu_only
def test_other_prompts_use_the_same_graph(model):
    int4kv.patch(model)
    options = compiling()
    for tokens in (60, 33, 5, 47):
        ids = random_ids(1, tokens, seed=tokens)
        assert torch.equal(generate(model, ids, **options, max_cache_len=100), generate(model, ids))
    assert graphs() == 1


@pytest.mark.cpu_only
@pytest.mark.parametrize("way", ["left padding", "short prompt"])
def test_a_compiled_forward_takes_the_prompt_eagerly(model, way):
    int4kv.patch(model)
    given, cache = PROMPTS[way](), int4kv.Int4StaticCache(model.config, 100)
    expected = generate(model, **given)
    compiling()
    model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
    try:
        for _ in range(2):
            assert torch.equal(generate(model, **given, **as_argument(cache)), expected)
            cache.reset()
    finally:
        del model.forward
    assert graphs() == 1


@pytest.mark.cpu_only
def test_inductor():
    model = int4kv.patch(tiny_qwen2(num_hidden_layers=1))
    ids = random_ids(1, 60)
    expected = generate(model, ids)
    assert torch.equal(generate(model, ids, **compiling("inductor")), expected) and graphs() == 1


def test_a_prompt_in_a_graph_is_refused_by_name(model):
    int4kv.patch(model)
    cache = int4kv.Int4StaticCache(model.config, 64)
    compiling()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=f"{CACHE} takes 60 tokens of a prompt.*accepted in a compiled graph: single tokens"):
        with torch.no_grad():
            compiled(random_ids(1, 60), **as_argument(cache))
    assert cache.get_seq_length() == 0


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens, compiled", [(1, False), (1, True), (5, False)])
def test_beyond_the_capacity_nothing_is_changed(model, tokens, compiled):
    int4kv.patch(model)
    cache = prefilled(model, 60)
    compiling()
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    with torch.no_grad():
        for token in range(4 if tokens == 1 else 0):
            run(torch.tensor([[token + 3]], device=DEVICE), **as_argument(cache))
        before = held(cache)
        with pytest.raises(ValueError, match="max_cache_len is 64; this chunk would make the sequence 65 tokens long"):
            run(random_ids(1, tokens), **as_argument(cache))
    assert_same_state(before, held(cache))


def test_what_it_cannot_do_is_named():
    config = tiny_qwen2().config
    with pytest.raises(ValueError, match="max_cache_len is None; accepted by Int4StaticCache: 1 or more"):
        int4kv.Int4StaticCache(config, None)
    with pytest.raises(ValueError, match="max_cache_len is 0; accepted: None, 1 or more"):
        int4kv.Int4StaticCache(config, 0)
    with pytest.raises(ValueError, match="check_finite is True; accepted by Int4StaticCache: False"):
        int4kv.Int4StaticCache(config, 64, check_finite=True)
    for edit in (lambda cache: cache.crop(-1), lambda cache: cache.activate_past_recording()):
        with pytest.raises(NotImplementedError, match="not there in an Int4StaticCache; accepted: an Int4Cache"):
            edit(int4kv.Int4StaticCache(config, 64))


def test_bytes_are_those_of_a_preallocated_cache():
    model = int4kv.patch(tiny_qwen2())
    static, growing = prefilled(model), int4kv.Int4Cache(model.config, max_cache_len=64)
    with torch.no_grad():
        model(random_ids(1, 60), **as_argument(growing))
    assert static.memory_footprint() < growing.memory_footprint()  # it keeps no early rows: there is no crop to need them
    assert static.layers[0].codes.nbytes == growing.layers[0].codes.nbytes


# ---- the ops ---------------------------------------------------------------------------------------------------------


def token_and_buffers(position, capacity=8):
    k, v = (torch.randn(1, 2, 1, 64, generator=torch.Generator().manual_seed(i)).to(DEVICE) for i in range(2))
    sides = buffers(1, 2, capacity, 64) + buffers(1, 2, capacity, 64)
    return k, v, sides, torch.tensor(position)


def test_append_kv_is_quantize_kv_at_the_length():
    k, v, ours, length = token_and_buffers(5)
    theirs = [tensor.clone() for tensor in ours]
    ops.append_kv(k, v, *ours, length, 8)
    ops.quantize_kv(k, v, *theirs, 5)
    assert length == 6 and all(map(same_bits, ours, theirs))
    q = torch.ones(1, 4, 1, 64, device=DEVICE)
    assert same_bits(ops.attend_appended(q, *ours, length, 0.1, window=4), ops.attend(q, *theirs, 2, 6, 0.1, window=4))


def test_no_cuda_graph_replays_a_length():
    for op in (ops.append_kv, ops.attend_appended):
        assert torch.Tag.cudagraph_unsafe in op.default.tags


@pytest.mark.parametrize("length", [torch.tensor(5.0), torch.tensor([5]), torch.tensor(5, dtype=torch.int32)])
def test_a_length_of_another_kind_is_named(length):
    k, v, sides, _ = token_and_buffers(0)
    for call in (lambda: ops.append_kv(k, v, *sides, length, 8), lambda: ops.attend_appended(k, *sides, length, 0.1)):
        with pytest.raises(ValueError, match="length has dtype .* accepted is one int64 on the CPU"):
            call()


def test_a_mask_that_is_too_short_is_named():
    k, v, sides, length = token_and_buffers(5)
    with pytest.raises(ValueError, match=r"mask has shape \[1, 1, 1, 4\]; accepted is .* 5 or more"):
        ops.attend_appended(k, *sides, length, 0.1, mask=torch.ones(1, 1, 1, 4, dtype=torch.bool, device=DEVICE))
