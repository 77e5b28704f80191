"""quantize, quantize_kv and dequantize as a user calls them: where rows land, what is left alone, what is refused."""

import pytest
import torch
from devices import DEVICE, on_cpu, on_device
from test_format import buffers, same_bits

from int4kv import ops, reference
from int4kv.rotation import hadamard_signs


def rows(*shape, seed=0):
    return on_device(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def test_only_the_slots_of_the_tokens_are_written():
    codes, scales = buffers(2, 2, 10, 64)
    codes.fill_(0xAB), scales.fill_(5.0)
    ops.quantize(rows(2, 2, 4, 64), codes, scales, 8)  # slots 8, 9, 0, 1
    assert (codes[:, :, 2:8] == 0xAB).all() and (scales[:, :, 2:8] == 5.0).all()
    assert (scales[:, :, [8, 9, 0, 1]] != 5.0).all()


def test_wrapping_around_equals_one_token_at_a_time():
    x, signs = rows(1, 2, 23, 128), hadamard_signs(128, DEVICE)
    whole, single = buffers(1, 2, 9, 128, recent=5), buffers(1, 2, 9, 128, recent=5)
    for t in range(0, 23, 9):
        ops.quantize(x[:, :, t : t + 9], *whole[:2], t, rotation=signs, recent=whole[2])
    for t in range(23):
        ops.quantize(x[:, :, t : t + 1], *single[:2], t, rotation=signs, recent=single[2])
    assert all(same_bits(a, b) for a, b in zip(whole, single))


def test_recent_rows_are_the_centred_rotated_input():
    x, centre, signs = rows(1, 2, 6, 64), rows(1, 2, 64, seed=1), hadamard_signs(64, DEVICE)
    codes, scales, recent = buffers(1, 2, 6, 64, recent=4)
    ops.quantize(x, codes, scales, 10, centre=centre, rotation=signs, recent=recent)
    expected = reference.transform(*on_cpu((x, centre, signs)))[:, :, 2:].half()
    assert torch.equal(recent.cpu()[:, :, [12 % 4, 13 % 4, 14 % 4, 15 % 4]], expected)


def test_any_strides_and_offsets():
    x = rows(2, 3, 5, 128)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2), x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
             torch.cat([x, x], 1)[:, 3:], torch.stack([x, x], -1)[..., 1], x[:1].expand(2, -1, -1, -1)]
    for view in views:
        plain, strided = buffers(2, 3, 8, 128), [t.new_zeros(2, 5, 20, t.shape[3])[:, 2:, 3:19:2] for t in buffers(2, 3, 8, 128)]
        ops.quantize(view.contiguous(), *plain, 0)
        ops.quantize(view, *strided, 0)
        assert all(same_bits(a, b) for a, b in zip(plain, strided))


def test_plain_rows_are_stored_as_they_are():
    x = rows(1, 2, 5, 64)
    stored = torch.zeros(1, 2, 8, 64, device=DEVICE)
    ops.quantize(x, stored, torch.zeros(1, 2, 8, 0, dtype=torch.float16, device=DEVICE), 2)
    assert torch.equal(stored[:, :, 2:7], x)


def test_quantize_kv_is_two_quantizes():
    k, v, signs = rows(2, 2, 7, 64), rows(2, 2, 7, 64, seed=1).bfloat16(), hadamard_signs(64, DEVICE)
    k_centre, v_centre = rows(1, 2, 64), rows(2, 2, 64, seed=2)
    both, apart = (buffers(2, 2, 9, 64, recent=4, bits=8) + buffers(2, 2, 9, 64, recent=4, bits=3) for _ in range(2))
    ops.quantize_kv(k, v, both[0], both[1], both[3], both[4], 3, k_centre=k_centre, v_centre=v_centre, k_rotation=signs,
                    v_rotation=signs.view(4, 16), k_recent=both[2], v_recent=both[5], codebook="lloyd")
    ops.quantize(k, apart[0], apart[1], 3, centre=k_centre, rotation=signs, recent=apart[2], codebook="lloyd")
    ops.quantize(v, apart[3], apart[4], 3, centre=v_centre, rotation=signs.view(4, 16), recent=apart[5], codebook="lloyd")
    assert all(same_bits(a, b) for a, b in zip(both, apart))


@pytest.mark.cpu_only
@pytest.mark.parametrize("tokens", [11, 203])
def test_threads_change_no_bit(tokens):
    k, v, signs, before = rows(2, 3, tokens, 64), rows(2, 3, tokens, 64, seed=1), hadamard_signs(64), torch.get_num_threads()
    stored = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            stored.append(buffers(2, 3, 210, 64, recent=4) + buffers(2, 3, 210, 64, recent=4))
            k_codes, k_scales, k_recent, v_codes, v_scales, v_recent = stored[-1]
            ops.quantize_kv(k, v, k_codes, k_scales, v_codes, v_scales, 5, k_rotation=signs, v_rotation=signs, k_recent=k_recent,
                            v_recent=v_recent, codebook="lloyd")
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(a, b) for other in stored[1:] for a, b in zip(other, stored[0]))


@pytest.mark.parametrize("rotation", [None, hadamard_signs(64, DEVICE)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_stay_nan_in_their_row(value, rotation):
    x = rows(1, 2, 5, 64)
    clean, broken = buffers(1, 2, 5, 64, group_size=32), buffers(1, 2, 5, 64, group_size=32)
    ops.quantize(x, *clean, 0, rotation=rotation)
    x[0, 1, 3, 40] = value
    ops.quantize(x, *broken, 0, rotation=rotation)
    read = ops.dequantize(*broken, 0, 5, 64, rotation=rotation)
    assert read[0, 1, 3, 40].isnan()
    read[0, 1, 3], expected = 0.0, ops.dequantize(*clean, 0, 5, 64, rotation=rotation)
    expected[0, 1, 3] = 0.0
    assert torch.equal(read, expected)


def test_a_scale_beyond_fp16_becomes_nan():
    codes, scales = buffers(1, 1, 1, 32)
    ops.quantize(torch.full((1, 1, 1, 32), 1e9, device=DEVICE), codes, scales, 0)
    assert scales.isnan().all()


def test_zero_and_tiny_rows_become_zero():
    x = torch.zeros(1, 1, 3, 32, device=DEVICE)
    x[0, 0, 1], x[0, 0, 2] = 1e-35, 1e-42
    codes, scales = buffers(1, 1, 3, 32)
    ops.quantize(x, codes, scales, 0)
    assert (ops.dequantize(codes, scales, 0, 3, 32) == 0).all()


@pytest.mark.parametrize("shape", [(0, 2, 3, 64), (2, 0, 3, 64), (2, 2, 0, 64)])
def test_empty_input_writes_nothing(shape):
    codes, scales = buffers(shape[0], shape[1], 4, 64)
    ops.quantize(torch.zeros(shape, device=DEVICE), codes, scales, 0)
    assert ops.dequantize(codes, scales, 0, 0, 64).shape == (*shape[:2], 0, 64)


BAD = [
    (dict(x=torch.zeros(1, 1, 2, 32, dtype=torch.int32)), TypeError, "x has dtype Int; accepted are float32"),
    (dict(x=torch.zeros(1, 2, 32)), ValueError, r"x has shape \[1, 2, 32\]; accepted is \[batch"),
    (dict(x=torch.zeros(1, 1, 2, 48)), ValueError, "head_dim is 48; accepted are multiples of 32"),
    (dict(x=torch.zeros(1, 1, 2, 288)), ValueError, "head_dim is 288"),
    (dict(x=torch.zeros(1, 1, 2, 64)), ValueError,
     r"codes has 16 bytes for head_dim 64; accepted are 24 \(3 bits\), 32 \(4 bits\), 40 \(5 bits\) and 64 \(8 bits\)"),
    (dict(x=torch.zeros(2, 1, 2, 32)), ValueError, r"x has shape \[2, 1, 2, 32\]; accepted are the batch and head sizes"),
    (dict(x=torch.zeros(1, 1, 5, 32)), ValueError, "x has 5 tokens; accepted are up to the capacity, 4"),
    (dict(codes=torch.zeros(1, 1, 4, 16, dtype=torch.int8)), TypeError, "codes has dtype Char"),
    (dict(codes=torch.zeros(1, 1, 16, 4, dtype=torch.uint8).mT), ValueError, "codes has stride 4"),
    (dict(scales=torch.zeros(1, 1, 4, 1)), TypeError, "scales has dtype Float; accepted is float16"),
    (dict(scales=torch.zeros(1, 1, 3, 1, dtype=torch.float16)), ValueError, "scales has capacity 3"),
    (dict(scales=torch.zeros(1, 1, 4, 2, dtype=torch.float16)), ValueError, "scales has 2 groups for head_dim 32"),
    (dict(codebook="asymmetric"), ValueError, "scales has 0 groups for head_dim 32; .* 2 numbers each"),
    (dict(rotation=torch.ones(3, 11)), ValueError, r"rotation has shape \[3, 11\]"),
    (dict(rotation=torch.ones(2, 8)), ValueError, r"rotation has shape \[2, 8\]"),
    (dict(position=-1), ValueError, "position is -1; accepted is 0 or more"),
    (dict(centre=torch.zeros(1, 32)), ValueError, r"centre has shape \[1, 32\]"),
    (dict(centre=torch.zeros(1, 1, 32).half()), TypeError, "centre has dtype Half"),
    (dict(rotation=torch.ones(64)), ValueError, r"rotation has shape \[64\]; accepted are \[32\]"),
    (dict(recent=torch.zeros(1, 1, 0, 32)), ValueError, "recent has shape"),
    (dict(codebook="lloyd9"), ValueError, "codebook is 'lloyd9'; accepted are 'uniform', 'lloyd', 'absmax' and 'asymmetric'"),
]


@pytest.mark.parametrize("change, error, message", BAD)
def test_bad_input_is_named_before_anything_is_written(change, error, message):
    codes, scales = buffers(1, 1, 4, 32)
    good = dict(x=torch.ones(1, 1, 2, 32), codes=codes, scales=scales, position=0, centre=None, rotation=None, recent=None,
                codebook="uniform")
    with pytest.raises(error, match=message):
        ops.quantize(**on_device(good | change))
    assert (codes == 0).all() and (scales == 0).all()


def test_tensors_of_two_devices_are_refused():
    codes, scales = buffers(1, 1, 4, 32)
    with pytest.raises(ValueError, match="x is on meta; accepted is (cpu|mps:0|cuda:0), where the other tensors are"):
        ops.quantize(torch.zeros(1, 1, 2, 32, device="meta"), codes, scales, 0)


def test_quantize_kv_checks_both_before_writing_either():
    k_codes, k_scales = buffers(1, 1, 4, 32)
    v_codes, v_scales = buffers(1, 1, 4, 32)
    with pytest.raises(TypeError, match="v has dtype Int"):
        ops.quantize_kv(*on_device((torch.ones(1, 1, 1, 32), torch.ones(1, 1, 1, 32).int())), k_codes, k_scales, v_codes, v_scales, 0)
    assert (k_scales == 0).all()


def test_dequantize_refuses_bad_ranges():
    codes, scales = buffers(1, 1, 4, 32)
    with pytest.raises(ValueError, match="spans 5 tokens; accepted are up to the capacity, 4"):
        ops.dequantize(codes, scales, 0, 5, 32)
    with pytest.raises(ValueError, match="start is 3 and end is 2"):
        ops.dequantize(codes, scales, 3, 2, 32)
    with pytest.raises(TypeError, match="dtype is Double"):
        ops.dequantize(codes, scales, 0, 2, 32, dtype=torch.float64)
