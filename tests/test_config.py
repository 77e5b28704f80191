"""What a config, a cache and a layer refuse, by name."""

import pytest
import torch
from cached_layers import chunk, fill, layer
from tiny_models import tiny_qwen2

import int4kv


BAD_CONFIG = [
    (dict(bits=6), "bits is 6; accepted: 3, 4, 5, 8, 16"), (dict(bits=(4, 4, 4)), r"bits is \(4, 4, 4\); accepted: one value or a pair"),
    (dict(bits=True), "bits is True"),
    (dict(codebook="nf4"), "codebook is 'nf4'; accepted: 'lloyd'"), (dict(group_size=48), "group_size is 48; accepted: None"),
    (dict(rotation="fft"), "rotation is 'fft'"), (dict(centre="mean"), "centre is 'mean'; accepted: 'prompt'"),
    (dict(centre="calibrated"), "calibration is None; accepted: the result of int4kv.calibrate, for centre"),
    (dict(rotation=("hadamard", "learned")), "calibration is None; accepted: the result of int4kv.calibrate, for rotation"),
    (dict(channel_lambda=True), "calibration is None; .* for channel_lambda"), (dict(hadamard_block=8), "hadamard_block is 8"),
    (dict(layer_bits={0: 7}), "layer_bits is 7"), (dict(layer_bits={0.5: 4}), "layer_bits is 0.5"),
    (dict(sinks=-1), "sinks is -1"), (dict(start=-1), "start is -1"),
    (dict(recent=-1), "recent is -1"), (dict(recent=1.5), "recent is 1.5"), (dict(prefill="fast"), "prefill is 'fast'"),
    (dict(max_cache_len=0), "max_cache_len is 0"), (dict(skip_layers=[0.5]), r"skip_layers is \(0.5,\)"),
    (dict(centre_tokens=0), "centre_tokens is 0"),
]


@pytest.mark.parametrize("overrides, message", BAD_CONFIG)
def test_bad_config_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        int4kv.Int4KVConfig(**overrides)


def test_unknown_option_is_named():
    with pytest.raises(TypeError, match="kv_bitz"):
        int4kv.Int4Cache(tiny_qwen2().config, kv_bitz=4)
    with pytest.raises(TypeError, match="config is a dict"):
        int4kv.Int4Cache(tiny_qwen2().config, {"bits": 4})


def test_config_as_plain_values():
    config = int4kv.Int4KVConfig(bits=(8, 4), recent=8, skip_layers=[1], layer_bits={0: 8, -1: (5, 3)}, rotation=["hadamard", None])
    assert int4kv.Int4KVConfig(**config.to_dict()) == config


def test_bad_chunks_are_refused_before_anything_is_written():
    target = layer(max_cache_len=20)
    k, v = chunk(10)
    target.update(k, v)
    before = {name: t.clone() for name, t in target.tensors().items()}
    bad = [((k.long(), v), "key_states has shape .* dtype torch.int64"), ((k[0], v[0]), "key_states has shape"),
           ((k[:, :1], v[:, :1]), r"layer 0 of this cache holds \[1, 2, tokens, 64\]"),
           ((k[..., :32], v[..., :32]), "this cache holds"), ((k, v[:, :, :3]), "value_states has shape"),
           ((torch.cat([k, k], 2), torch.cat([v, v], 2)), "max_cache_len is 20; this chunk would make the sequence 30 tokens long")]
    for states, message in bad:
        with pytest.raises(ValueError, match=message):
            target.update(*states)
    assert target.get_seq_length() == 10
    assert all(torch.equal(before[name], t) for name, t in target.tensors().items())


@pytest.mark.parametrize("window", [None, 5])
def test_a_single_token_beyond_max_cache_len_is_refused(window):
    target = layer(window, max_cache_len=20, centre=None)
    k, v = chunk(21)
    fill(target, k, v, [10] + [1] * 10)
    with pytest.raises(ValueError, match="max_cache_len is 20; this chunk would make the sequence 21 tokens long"):
        fill(target, k, v, [1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_check_finite(value):
    k, v = chunk(4)
    v[0, 1, 2, 3] = value
    strict, lenient = layer(check_finite=True), layer()
    with pytest.raises(ValueError, match="value_states of layer 0 has NaN or infinity"):
        strict.update(k, v)
    assert strict.get_seq_length() == 0
    lenient.update(k, v)
    assert lenient.codes.tensors[3][0, 1, 2].isnan().all() and lenient.codes.tensors[3][0, 1, 1].isfinite().all()


def test_group_size_must_divide_head_dim():
    with pytest.raises(ValueError, match="group_size is 64; accepted: divisors of head_dim, 96"):
        layer(group_size=64).update(*chunk(3, head_dim=96))
