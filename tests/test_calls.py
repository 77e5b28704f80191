"""ops.attend and ops.quantize_kv are torch.ops.int4kv's, called without its parsing: the same results, the same care with arguments."""

import sys

import pytest
import torch
from stored_rows import Stored, queries
from test_format import buffers, same_bits
from torch._subclasses.fake_tensor import FakeTensorMode

from int4kv import ops


def decode_step(**options):
    stored = Stored(1, 2, 64, 0, 20, 24, rows=8)
    return (queries(1, 4, 1, 64), *stored.sides, 0, 20, 0.125), stored.options | dict(recent_window=4) | options


def test_attend_is_the_registered_op():
    arguments, options = decode_step(window=7, softcap=3.0, causal=True, mask=None)
    assert torch.equal(ops.attend(*arguments, **options), torch.ops.int4kv.attend(*arguments, **options))


def test_quantize_kv_is_the_registered_op():
    k, v = queries(1, 2, 3, 64), queries(1, 2, 3, 64, seed=1)
    ours, theirs = buffers(1, 2, 8, 64) + buffers(1, 2, 8, 64), buffers(1, 2, 8, 64) + buffers(1, 2, 8, 64)
    assert ops.quantize_kv(k, v, *ours, 2, codebook="lloyd") is None
    torch.ops.int4kv.quantize_kv(k, v, *theirs, 2, codebook="lloyd")
    assert all(same_bits(a, b) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_mode_changes_no_bit(mode):
    arguments, options = decode_step()
    with mode():
        out = ops.attend(*arguments, **options)
    assert torch.equal(out, torch.ops.int4kv.attend(*arguments, **options))


def test_arguments_are_only_borrowed():
    """After a call, refused or not, nobody else holds or has let go of a tensor."""
    arguments, options = decode_step()
    given = [x for x in (*arguments, *options.values()) if isinstance(x, torch.Tensor)]
    before = [(sys.getrefcount(x), x._use_count()) for x in given]
    ops.attend(*arguments, **options)
    with pytest.raises(ValueError):
        ops.attend(*arguments, **options | dict(codebook="huffman"))
    with pytest.raises(TypeError):
        ops.attend(*arguments, **options | dict(codebook=3))
    assert [(sys.getrefcount(x), x._use_count()) for x in given] == before


def test_positional_arguments_can_be_named():
    (q, *sides, start, end, scale), options = decode_step()
    names = ("k_codes", "k_scales", "v_codes", "v_scales")
    named = ops.attend(q, **dict(zip(names, sides)), end=end, start=start, scale=scale, **options)
    assert torch.equal(named, ops.attend(q, *sides, start, end, scale, **options))


def test_fake_tensors_go_through_the_dispatcher():
    arguments, options = decode_step()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        out = ops.attend(mode.from_tensor(arguments[0]), *arguments[1:], **options)
    assert isinstance(out, torch._subclasses.FakeTensor) and out.shape == arguments[0].shape


@pytest.mark.parametrize("change, error, message", [
    (dict(codebok="lloyd"), TypeError, "attend has no argument 'codebok'"),
    (dict(start=0), TypeError, "attend was given start twice"),
    (dict(window=1.5), TypeError, "window is .*float.*; accepted is an int"),
    (dict(softcap="no"), TypeError, "softcap is .*str.*; accepted is a float"),
    (dict(causal=1), TypeError, "causal is .*int.*; accepted is a bool"),
    (dict(mask=[True]), TypeError, "mask is .*list.*; accepted is a tensor"),
    (dict(codebook=3), TypeError, "codebook is .*int.*; accepted is a string"),
    (dict(codebook="huffman"), ValueError, "codebook is 'huffman'"),
    (dict(window=2**70), ValueError, "Overflow"),
])
def test_refuses_by_name(change, error, message):
    arguments, options = decode_step(**change)
    with pytest.raises(error, match=message):
        ops.attend(*arguments, **options)


def test_refuses_missing_and_surplus_arguments():
    arguments, options = decode_step()
    with pytest.raises(TypeError, match="attend needs scale"):
        ops.attend(*arguments[:-1], **options)
    with pytest.raises(TypeError, match="was given 9 positional arguments; accepted are 8"):
        ops.attend(*arguments, 1)
    with pytest.raises(TypeError, match="q is .*NoneType.*; accepted is a tensor"):
        ops.attend(None, *arguments[1:])
