"""What a decode step asks of the GPU, counted on the emulated device: dispatches, synchronisations, memory."""

import pytest
import torch
from devices import DEVICE

import int4kv
from int4kv import ops
from int4kv.models import load
from int4kv.naming import as_argument, cache_of
from int4kv.rotation import hadamard_signs

pytestmark = pytest.mark.mps_only


@pytest.fixture
def rig():
    from rig import device

    device.reset_counters()
    return device


def decode_step(heads, kv_heads, head_dim, keys, rig):
    """(counters, kernels) of quantize_kv and attend for one token after `keys` tokens."""
    signs = hadamard_signs(head_dim, DEVICE)
    sides = [torch.zeros(1, kv_heads, keys + 1, n, dtype=t, device=DEVICE) for n, t in ((head_dim // 2, torch.uint8), (1, torch.float16)) * 2]
    q, k = torch.ones(1, heads, 1, head_dim, device=DEVICE), torch.ones(1, kv_heads, 1, head_dim, device=DEVICE)
    torch.mps.synchronize()
    rig.reset_counters()
    ops.quantize_kv(k, k, *sides, keys, k_rotation=signs, v_rotation=signs, codebook="lloyd")
    ops.attend(q, *sides, 0, keys + 1, 1.0, k_rotation=signs, v_rotation=signs, codebook="lloyd")
    return rig.counters(), rig.kernels_dispatched()


@pytest.mark.parametrize("heads, kv_heads, head_dim", [(12, 2, 128), (28, 4, 128), (14, 2, 64), (4, 1, 256), (8, 4, 256), (4, 4, 96)])
@pytest.mark.parametrize("keys", [0, 40, 511, 3000])
def test_at_most_three_dispatches_and_nobody_waits(rig, heads, kv_heads, head_dim, keys):
    counters, kernels = decode_step(heads, kv_heads, head_dim, keys, rig)
    assert kernels[0] == f"quantize_{head_dim}" and kernels[1].startswith("attend_") and kernels[2:] in ([], [f"merge_{head_dim}"])
    assert counters["dispatches"] == counters["profiled_kernels"] == len(kernels) <= 3
    assert counters["commits"] == counters["waits"] == counters["synchronisations"] == 0


def test_memory_of_a_step_does_not_grow_with_the_context(rig):
    taken = [decode_step(4, 1, 64, keys, rig)[0]["bytes_allocated"] for keys in (8_000, 16_000, 32_000)]
    assert taken[0] == taken[1] == taken[2] < 100_000


@pytest.mark.parametrize("name, options", [("tiny-qwen2", {}), ("tiny-gemma3", dict(bits=(5, 4), codebook="absmax", sinks=4))])
def test_every_layer_of_a_model_takes_no_more_and_its_kernels_were_built_by_patch(rig, name, options):
    model, tokenizer = load(name)
    int4kv.patch(model.to(DEVICE), **options)
    built = ops.prepare(DEVICE, [])
    out = model.generate(torch.ones(1, 40, dtype=torch.long, device=DEVICE), max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    rig.reset_counters()
    model(out.sequences[:, -1:], **as_argument(cache_of(out)))
    kernels = rig.kernels_dispatched()
    assert len(kernels) == 2 * model.config.num_hidden_layers  # 43 tokens: one split
    assert ops.prepare(DEVICE, []) == built


def test_kernels_are_built_for_the_widths_and_the_codebook_asked_for(rig):
    built = ops.prepare(DEVICE, [128], 3, 8, "absmax")
    attention = {f"attend_{kernel} (K 3, V 8, absmax{step})" for kernel, step in (("simd_1", ""), ("simd_2", ""), ("matrix_128", ""), ("matrix_128", ", decode"))}
    assert attention | {"quantize_128", "merge_128", "merge_128 (decode)"} <= set(built)
    assert not any(kernel.startswith("attend_matrix") for kernel in set(ops.prepare(DEVICE, [128], 8, 8, "asymmetric")) - set(built))


def test_kernels_are_compiled_for_macos_14_with_safe_math(rig):
    ops.prepare(DEVICE, [64])
    assert [(made["language_version"], made["fast_math"]) for made in rig.libraries()] == [("3.1", False)]
