"""What the paged ops refuse, by name and before anything is written, and what torch expects of them."""

import pytest
import torch
import torch._dynamo.testing
from devices import DEVICE, on_device
from pages import int32, random, side
from test_format import same_bits
from test_ops_contract import opcheck

from int4kv import ops
from int4kv.rotation import hadamard_signs


def quantize_arguments():
    k = torch.ones(3, 2, 64)
    sides = dict(zip(("k_codes", "k_scales", "v_codes", "v_scales"), (torch.zeros_like(t) for t in side(4, 8, 2, 64) * 2)))
    k_recent, v_recent = torch.zeros(2, 2, 4, 2, 64).half()
    recent = dict(k_recent=k_recent, v_recent=v_recent, recent_slots=torch.tensor([0, 1, -1]))
    return dict(k=k, v=k.clone(), **sides, slots=torch.tensor([0, 9, 31])) | recent


BAD_QUANTIZE = [
    (dict(k=torch.ones(3, 2, 64).int()), TypeError, "k has dtype Int; accepted are float32"),
    (dict(k=torch.ones(1, 3, 2, 64)), ValueError, r"k has shape \[1, 3, 2, 64\]; accepted is \[tokens, num_key_value_heads, head_dim\]"),
    (dict(k=torch.ones(3, 3, 64)), ValueError, "k has 3 heads; accepted are those of the codes, 2"),
    (dict(v=torch.ones(2, 2, 64)), ValueError, "v has 2 tokens; accepted are as many as k has, 3"),
    (dict(k_codes=torch.zeros(4, 8, 2, 30).byte()), ValueError, "k_codes has 30 bytes for head_dim 64"),
    (dict(k_codes=torch.zeros(4, 0, 2, 32).byte(), k_scales=torch.zeros(4, 0, 2, 1).half()), ValueError, "k_codes has page_size 0"),
    (dict(v_codes=torch.zeros(5, 8, 2, 32).byte(), v_scales=torch.zeros(5, 8, 2, 1).half()), ValueError,
     "v_codes has shape .* the pages and the page_size"),
    (dict(v_scales=torch.zeros(4, 7, 2, 1).half()), ValueError, "v_scales has page_size 7; accepted is that of the codes, 8"),
    (dict(slots=torch.tensor([0, 9], dtype=torch.int64)), ValueError, r"slots has shape \[2\]; accepted is \[3\]"),
    (dict(slots=torch.tensor([0, 9, 31], dtype=torch.int32)), TypeError, "slots has dtype Int; accepted is int64"),
    (dict(k_centre=torch.zeros(2, 2, 64)), ValueError, r"k_centre has shape \[2, 2, 64\]"),
    (dict(v_rotation=torch.ones(32)), ValueError, r"v_rotation has shape \[32\]"),
    (dict(k_recent=torch.zeros(2, 4, 1, 64).half()), ValueError, "k_recent has shape"),
    (dict(k_recent=None), ValueError, "k_recent is None and v_recent is given"),
    (dict(recent_slots=None), ValueError, "recent_slots is None and k_recent is given"),
    (dict(v_recent=torch.zeros(3, 4, 2, 64).half()), ValueError, "v_recent has 3 rings; accepted are as many as k_recent has, 2"),
    (dict(codebook="x"), ValueError, "codebook is 'x'"),
]
# What the tensors hold: nothing is read back from a GPU to check it.
BAD_SLOTS = [
    (dict(slots=torch.tensor([0, 32, 1])), ValueError, r"slots has 32 for token 1; accepted are -1 \(not stored\) and 0 to 31"),
    (dict(slots=torch.tensor([0, -2, 1])), ValueError, "slots has -2 for token 1"),
    (dict(slots=torch.tensor([7, 3, 7])), ValueError, "slots has 7 for two tokens; accepted is a slot of its own for each"),
    (dict(recent_slots=torch.tensor([-1, 8, 1])), ValueError, "recent_slots has 8 for token 1"),
    (dict(recent_slots=torch.tensor([5, -1, 5])), ValueError, "recent_slots has 5 for two tokens"),
]


def refuses_quantize(change, error, message):
    given = on_device(quantize_arguments() | change)
    with pytest.raises(error, match=message):
        ops.quantize_paged(**given)
    assert all((given[name] == 0).all() for name in ("k_codes", "k_scales", "v_codes", "v_scales"))


@pytest.mark.parametrize("change, error, message", BAD_QUANTIZE)
def test_bad_input_is_named_before_anything_is_written(change, error, message):
    refuses_quantize(change, error, message)


@pytest.mark.cpu_only
@pytest.mark.parametrize("change, error, message", BAD_SLOTS)
def test_bad_slots_are_named_before_anything_is_written(change, error, message):
    refuses_quantize(change, error, message)


@pytest.mark.gpu_only
def test_slots_outside_write_nothing():
    given = on_device(quantize_arguments() | dict(slots=torch.tensor([-2, 32, 2**40]), recent_slots=torch.tensor([8, -9, 2**40])))
    ops.quantize_paged(**given)
    assert all((given[name] == 0).all() for name in ("k_codes", "k_scales", "v_codes", "v_scales", "k_recent", "v_recent"))


def attend_arguments():
    sides = {name: t for name, t in quantize_arguments().items() if name not in ("k", "v", "slots", "recent_slots")}
    batch = dict(block_table=[[0, 1], [2, 3]], lengths=[10, 16], query_starts=[0, 1, 3], rings=[0, 1], recent_starts=[6, 12])
    return dict(q=torch.ones(3, 4, 64), **sides, max_queries=2, scale=1.0, recent_window=4) | {k: int32(v) for k, v in batch.items()}


BAD_ATTEND = [
    (dict(q=torch.ones(3, 4, 64).long()), TypeError, "q has dtype Long"),
    (dict(q=torch.ones(1, 3, 4, 64)), ValueError, r"q has shape \[1, 3, 4, 64\]; accepted is \[tokens, num_heads, head_dim\]"),
    (dict(q=torch.ones(3, 3, 64)), ValueError, "q has 3 heads; accepted are multiples of num_key_value_heads, 2"),
    (dict(block_table=torch.zeros(2, 2).long()), TypeError, "block_table has dtype Long; accepted is int32"),
    (dict(block_table=torch.zeros(2).int()), ValueError, r"block_table has shape \[2\]; accepted is \[sequences, pages of a sequence\]"),
    (dict(lengths=torch.zeros(3).int()), ValueError, r"lengths has shape \[3\]; accepted is \[2\], one per sequence"),
    (dict(query_starts=torch.zeros(2).int()), ValueError, r"query_starts has shape \[2\]; accepted is \[3\]"),
    (dict(max_queries=-1), ValueError, "max_queries is -1"),
    (dict(v_codes=torch.zeros(4, 9, 2, 32).byte(), v_scales=torch.zeros(4, 9, 2, 1).half()), ValueError,
     "v_codes has page_size 9; accepted is that of k_codes, 8"),
    (dict(rings=None), ValueError, "rings is None and k_recent is given"),
    (dict(recent_starts=None), ValueError, "recent_starts is None and k_recent is given"),
    (dict(v_recent=None), ValueError, "k_recent is given and v_recent is None"),
    (dict(rings=torch.zeros(2)), TypeError, "rings has dtype Float; accepted is int32"),
    (dict(window=-1), ValueError, "window is -1"),
    (dict(recent_window=-1), ValueError, "recent_window is -1"),
    (dict(softcap=-1.0), ValueError, "softcap is -1"),
    (dict(v_centre=torch.zeros(2, 64)), ValueError, r"v_centre has shape \[2, 64\]"),
]
BAD_TABLES = [
    (dict(block_table=torch.tensor([[0, 1], [4, 3]]).int()), ValueError,
     "block_table has 4 for tokens 0 to 7 of sequence 1; accepted are the pages 0 to 3"),
    (dict(block_table=torch.tensor([[-1, 1], [2, 3]]).int()), ValueError, "block_table has -1 for tokens 0 to 7 of sequence 0"),
    (dict(lengths=torch.tensor([10, 17]).int()), ValueError,
     "lengths has 17 for sequence 1; accepted are its queries, 2, to the tokens of 2 pages, 16"),
    (dict(lengths=torch.tensor([10, 1]).int()), ValueError, "lengths has 1 for sequence 1"),
    (dict(query_starts=torch.tensor([0, 2, 1]).int()), ValueError,
     "query_starts has 2 and 1 for sequence 1; accepted are ascending rows of q, 0 to 3"),
    (dict(query_starts=torch.tensor([0, 2, 4]).int()), ValueError, "query_starts has 2 and 4 for sequence 1"),
    (dict(max_queries=1), ValueError,
     "max_queries is 1; accepted is the most of a sequence or more, and sequence 1 has 2"),
    (dict(rings=torch.tensor([0, 2]).int()), ValueError, r"rings has 2 for sequence 1; accepted are -1 \(none\) and 0 to 1"),
    (dict(recent_starts=torch.tensor([5, 12]).int()), ValueError,
     "recent_starts has 5 for sequence 0 of length 10; accepted are at most 4 tokens"),
    (dict(recent_starts=torch.tensor([-1, 12]).int()), ValueError, "recent_starts has -1 for sequence 0"),
]


@pytest.mark.parametrize("change, error, message", BAD_ATTEND)
def test_bad_input_of_attend_is_named(change, error, message):
    with pytest.raises(error, match=message):
        ops.attend_paged(**on_device(attend_arguments() | change))


@pytest.mark.cpu_only
@pytest.mark.parametrize("change, error, message", BAD_TABLES)
def test_bad_tables_are_named(change, error, message):
    with pytest.raises(error, match=message):
        ops.attend_paged(**(attend_arguments() | change))


def test_opcheck():
    opcheck(ops.quantize_paged.default, (), on_device(quantize_arguments() | dict(k_rotation=hadamard_signs(64))))
    opcheck(ops.attend_paged.default, (), on_device(attend_arguments()))


def test_no_silent_gradient():
    out = ops.attend_paged(**on_device(attend_arguments() | dict(q=torch.ones(3, 4, 64, requires_grad=True))))
    with pytest.raises(RuntimeError, match="int4kv|does not require grad|not implemented"):
        out.sum().backward()


def step(q, k, v, sides, slots, table, lengths, starts):
    ops.quantize_paged(k, v, *sides, slots)
    return ops.attend_paged(q, *sides, table, lengths, starts, 1, 0.125)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.cpu_only)])
def test_one_compiled_graph_serves_every_length_and_batch(backend):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    ours, theirs = ([torch.zeros_like(t) for t in side(12, 4, 2, 64) * 2] for _ in range(2))
    tables = torch.arange(12, dtype=torch.int32, device=DEVICE).view(4, 3)
    for length in range(1, 9):
        batch = 2 + length % 3
        q, k, v = (random(batch, heads, 64, seed=length + heads + i) for i, heads in enumerate((4, 2, 2)))
        slots = tables[:batch, (length - 1) // 4].long() * 4 + (length - 1) % 4
        lengths, starts = int32([length] * batch), int32(list(range(batch + 1)))
        given = slots, tables[:batch], lengths, starts
        assert torch.equal(compiled(q, k, v, ours, *given), step(q, k, v, theirs, *given))
    assert counter.frame_count <= 2, f"{counter.frame_count} graphs for 8 lengths"
    assert all(same_bits(a, b) for a, b in zip(ours, theirs))
