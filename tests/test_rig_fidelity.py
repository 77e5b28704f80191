"""Kernels that others wrote for Apple's GPUs give the CPU's results on the rig: torch's, from the installed wheel."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rig.msl.compile import compile_metal
from rig.msl.host import Library
from rig.msl.recording import replay, write_launch

TORCH_INCLUDE = Path(torch.__file__).parent / "include"
SCHEDULES = (0, 1, 2)
ALLOW_DIVERGENCE = 0x100  # torch's reductions call SIMD functions from a part of a simdgroup
HEADER = "#include <metal_stdlib>\n#include <c10/metal/utils.h>\nusing namespace metal;\nusing namespace c10::metal;\n"

ATTENTION = HEADER + """
#include <ATen/native/mps/kernels/DecodeAttention.h>
#include <ATen/native/mps/kernels/PrefillAttention.h>
"""
ATTENTION_KERNELS = (r"^sdpa_vector_(half_128_128|bfloat_64_64)_mask(none|bool)$"
                     r"|^sdpa_vector_2pass_(1_float_128_128_masknone|2_float_128)$"
                     r"|^prefill_attention_float16_bq32_bk16_bd128_wm4_wn1_hm0_dc[01]_maskfloat16$"
                     r"|^prefill_attention_float32_bq32_bk32_bd64_wm4_wn1_hm(0_dc1_maskfloat32|1_dc0_maskbool_)$")
SORT = HEADER + "#include <ATen/native/mps/kernels/SortMerge.h>\n"

# Kernels around the headers that have no kernels of their own.
REDUCTIONS = HEADER + """
#include <c10/metal/reduction_utils.h>
kernel void reduce(device const float* in, device float* out, constant uint& count,
                   uint i [[thread_index_in_threadgroup]], uint group [[threadgroup_position_in_grid]]) {
  threadgroup float floats[32];
  threadgroup uint indices[32];
  threadgroup float3 triples[256];
  const float x = in[group * count + i];
  device float* mine = out + group * 8;
  mine[0] = threadgroup_sum<float>(floats, x, i, count);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  mine[1] = threadgroup_prod<float>(floats, x, i, count);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  mine[2] = threadgroup_max<float>(floats, x, i, count);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  mine[3] = threadgroup_min<float>(floats, x, i, count);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  mine[4] = threadgroup_argmax(floats, indices, x, i, i, count);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  mine[5] = threadgroup_argmin(floats, indices, x, i, i, count);
  triples[i] = float3(x, 0, 1);
  const float3 welford = threadgroup_welford_combine(triples, count);
  mine[6] = welford.x;
  mine[7] = welford.y / (welford.z - 1);
}
kernel void sum_long(device const long* in, device long* out, uint i [[thread_index_in_threadgroup]]) {
  out[i] = c10::metal::simd_sum(in[i]);
}
"""
SPECIAL = HEADER + """
#include <c10/metal/indexing.h>
#include <c10/metal/special_math.h>
#define INSTANCE(name, T) template [[host_name(#name "_" #T)]] kernel void c10::metal::unary_dense<T, name##_functor>( \\
    device T*, constant T*, constant uint&, uint);
#define FUNCTION(name) DEFINE_UNARY_FLOATING_FUNCTOR(name); INSTANCE(name, float) INSTANCE(name, half)
"""
SPECIAL_FUNCTIONS = {
    "erf": torch.erf, "erfinv": torch.erfinv, "i0": torch.special.i0, "i0e": torch.special.i0e, "i1": torch.special.i1,
    "i1e": torch.special.i1e, "digamma": torch.digamma, "sinc": torch.sinc, "entr": torch.special.entr,
    "erfcx": torch.special.erfcx, "bessel_j0_forward": torch.special.bessel_j0,
    "modified_bessel_k1_forward": torch.special.modified_bessel_k1}
RANDOM = HEADER + """
#include <c10/metal/random.h>
kernel void random(device uint4* raw, device float* uniform, device float* normal, device long* integer,
                   constant long2& seed, uint i [[thread_position_in_grid]]) {
  raw[i] = philox4::rand(seed.x, seed.y + i);
  uniform[i] = c10::metal::rand(seed.x, seed.y + i);
  normal[i] = c10::metal::randn(seed.x, seed.y + i);
  integer[i] = c10::metal::randint64(seed.x, seed.y + i, -5, 20);
}
"""


def compiled(folder, source, only=None, sanitize=None):
    (folder / "kernels.metal").write_text(source)
    return compile_metal(folder / "kernels.metal", folder / f"kernels-{sanitize}.so", [TORCH_INCLUDE], only=only,
                         sanitize=sanitize, lint=False)


@pytest.fixture(scope="module")
def attention(tmp_path_factory):
    return Library(compiled(tmp_path_factory.mktemp("attention"), ATTENTION, ATTENTION_KERNELS))


def array(tensor):
    """The tensor's memory as numpy knows it: bfloat16 as uint16."""
    tensor = tensor.contiguous()
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def uint32(*values):
    return np.array(values, np.uint32)


def random_qkv(batch, heads, kv_heads, queries, keys, head_dim, dtype):
    generator = torch.Generator().manual_seed(keys)
    q = torch.randn(batch, heads, queries, head_dim, generator=generator).to(dtype)
    k, v = torch.randn(2, batch, kv_heads, keys, head_dim, generator=generator).to(dtype)
    return q, k, v


def reference(q, k, v, **options):
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), enable_gqa=True, **options)


# Against float32 on the same rounded inputs: only the output is rounded to the dtype, sums are float32 throughout.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def assert_attention(out, q, expected):
    found = torch.from_numpy(out.view(np.int16)).view(q.dtype) if q.dtype == torch.bfloat16 else torch.from_numpy(out)
    rounding = ROUNDING[q.dtype]
    torch.testing.assert_close(found.view(expected.shape).float(), expected, atol=rounding / 8 + 2e-6, rtol=rounding)


def decode_bindings(q, k, first):
    """What sdpa_vector's two forms share from the buffer of gqa_factor on: grouping, strides, scale, no mask."""
    (heads, queries, dim), (kv_heads, keys) = q.shape[1:], k.shape[1:3]
    strides = [uint32(queries * dim, keys * dim, keys * dim), uint32(dim, dim, dim)]
    batch_strides = uint32(heads * queries * dim, kv_heads * keys * dim, kv_heads * keys * dim, heads)
    no_mask = [uint32(0), uint32(0, 0, 0, 0)]
    values = [uint32(heads // kv_heads), uint32(keys), *strides, np.float32([dim**-0.5]), *no_mask, batch_strides]
    return dict(enumerate(values, first))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name,dtype,head_dim", (("half", torch.float16, 128), ("bfloat", torch.bfloat16, 64)))
def test_sdpa_vector(attention, name, dtype, head_dim, schedule):
    q, k, v = random_qkv(2, 8, 2, 1, 301, head_dim, dtype)
    buffers = {0: array(q), 1: array(k), 2: array(v), 3: np.zeros_like(array(q)), **decode_bindings(q, k, 4)}
    attention.launch(f"sdpa_vector_{name}_{head_dim}_{head_dim}_masknone", buffers, 1024, 16, schedule=schedule)
    assert_attention(buffers[3], q, reference(q, k, v))
    mask = torch.rand(301, generator=torch.Generator().manual_seed(1)) < 0.6
    buffers |= {9: mask.numpy(), 10: uint32(1, 0, 0, 0)}
    attention.launch(f"sdpa_vector_{name}_{head_dim}_{head_dim}_maskbool", buffers, 1024, 16, schedule=schedule)
    assert_attention(buffers[3], q, reference(q, k, v, attn_mask=mask.expand(1, 1, 1, 301)))


def test_sdpa_vector_at_4096_keys(attention):
    q, k, v = random_qkv(1, 8, 2, 1, 4096, 128, torch.float16)
    buffers = {0: array(q), 1: array(k), 2: array(v), 3: np.zeros_like(array(q)), **decode_bindings(q, k, 4)}
    attention.launch("sdpa_vector_half_128_128_masknone", buffers, 1024, 8)
    assert_attention(buffers[3], q, reference(q, k, v))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sdpa_vector_in_two_passes(attention, schedule):
    q, k, v = random_qkv(1, 4, 2, 2, 555, 128, torch.float32)
    parts = np.zeros((4 * 2, 32, 128), np.float32)
    sums, maxima, out = np.zeros((8, 32), np.float32), np.zeros((8, 32), np.float32), np.zeros_like(array(q))
    buffers = {0: array(q), 1: array(k), 2: array(v), 3: parts, 4: sums, 5: maxima, **decode_bindings(q, k, 6)}
    attention.launch("sdpa_vector_2pass_1_float_128_128_masknone", buffers, 256, (4, 2, 32), schedule=schedule)
    buffers = {0: parts, 1: sums, 2: maxima, 3: out}
    attention.launch("sdpa_vector_2pass_2_float_128", buffers, 1024, (4, 2), schedule=schedule)
    assert_attention(out, q, reference(q, k, v))


def prefill_bindings(q, k, out):
    """PrefillAttnParams and the tensors, for contiguous q, k, v."""
    (batch, heads, queries, dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    of_q, of_k = [heads * queries * dim, queries * dim, dim], [kv_heads * keys * dim, keys * dim, dim]
    sizes = np.int32([batch, heads, dim, queries, keys, heads // kv_heads]).tobytes()
    return {3: out, 4: sizes + np.float32([dim**-0.5, 1]).tobytes() + np.int32(of_q + of_k + of_k + of_q).tobytes()}


MASK = torch.arange(77).expand(1, 1, 45, 77) % 5 > 1
PREFILL = {  # kernel: dtype, head_dim, what it is called with
    "float16_bq32_bk16_bd128_wm4_wn1_hm0_dc0_maskfloat16": (torch.float16, 128, {}),
    "float16_bq32_bk16_bd128_wm4_wn1_hm0_dc1_maskfloat16": (torch.float16, 128, {"is_causal": True}),
    "float32_bq32_bk32_bd64_wm4_wn1_hm0_dc1_maskfloat32": (torch.float32, 64, {"is_causal": True}),
    "float32_bq32_bk32_bd64_wm4_wn1_hm1_dc0_maskbool_": (torch.float32, 64, {"attn_mask": MASK}),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", PREFILL)
def test_prefill_attention(attention, name, schedule):
    """Built on simdgroup_matrix. float16 rounds its probabilities' operands to half, hence four roundings."""
    dtype, head_dim, options = PREFILL[name]
    q, k, v = random_qkv(1, 4, 2, 45, 77, head_dim, dtype)
    buffers = {0: array(q), 1: array(k), 2: array(v), **prefill_bindings(q, k, np.zeros_like(array(q))),
               5: np.int32([0, 0, 77, 1]), 6: array(MASK)}
    attention.launch(f"prefill_attention_{name}", buffers, (32, 4), (2, 4, 1), schedule=schedule)
    tolerance = 4 * ROUNDING[dtype]
    found = torch.from_numpy(buffers[3]).float()
    torch.testing.assert_close(found, reference(q, k, v, **options), atol=tolerance, rtol=tolerance)


@pytest.fixture(scope="module")
def sort(tmp_path_factory):
    return Library(compiled(tmp_path_factory.mktemp("sort"), SORT, "^sort_block_(float|int)_tptg(64|256)_stable$"))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name,threads,size", (("float", 64, 250), ("float", 256, 1024), ("int", 64, 31)))
def test_sort(sort, name, threads, size, schedule):
    values = torch.randint(-40, 40, (3, size), generator=torch.Generator().manual_seed(size)).to(getattr(torch, name))
    for descending in (False, True):
        found, indices = np.zeros_like(values.numpy()), np.zeros((3, size), np.int64)
        sizes = {3: np.int32([size]), 4: np.int64([1, size]), 5: np.array([descending])}
        buffers = {0: values.numpy(), 1: found, 2: indices, **sizes}
        sort.launch(f"sort_block_{name}_tptg{threads}_stable", buffers, threads, (1, 3), schedule=schedule)
        expected = values.sort(stable=True, descending=descending)
        assert np.array_equal(found, expected.values) and np.array_equal(indices, expected.indices)


@pytest.fixture(scope="module")
def reductions(tmp_path_factory):
    return Library(compiled(tmp_path_factory.mktemp("reductions"), REDUCTIONS))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("count", (32, 96, 256))
def test_reductions(reductions, count, schedule):
    x = torch.rand(3, count, generator=torch.Generator().manual_seed(count)) + 0.5
    out = np.zeros((3, 8), np.float32)
    reductions.launch("reduce", {0: x.numpy(), 1: out, 2: uint32(count)}, count, 3, schedule=schedule | ALLOW_DIVERGENCE)
    expected = [x.sum(1), x.prod(1), x.amax(1), x.amin(1), x.argmax(1).float(), x.argmin(1).float(), x.mean(1), x.var(1)]
    torch.testing.assert_close(torch.from_numpy(out), torch.stack(expected, 1), rtol=count * 2**-23, atol=0)
    long = np.arange(32, dtype=np.int64) * 10**12 - 5
    total = np.zeros(32, np.int64)
    reductions.launch("sum_long", {0: long, 1: total}, 32, 1, schedule=schedule)
    assert (total == long.sum()).all()


def test_special_functions(tmp_path):
    """Within 3e-5, in half its rounding too: the accuracy of the polynomials, not of the rig."""
    source = SPECIAL + "".join(f"FUNCTION({name})\n" for name in SPECIAL_FUNCTIONS)
    library = Library(compiled(tmp_path, source))
    x = torch.linspace(0.03, 0.97, 301)
    for name, function in SPECIAL_FUNCTIONS.items():
        for kind, dtype, rounding in (("float", torch.float32, 0), ("half", torch.float16, 2**-10)):
            given, out = x.to(dtype), np.zeros(301, array(x.to(dtype)).dtype)
            library.launch(f"{name}_{kind}", {0: out, 1: array(given), 2: uint32(301)}, 32, threads=76)
            expected = function(given.double())
            torch.testing.assert_close(torch.from_numpy(out).double(), expected, atol=3e-5, rtol=3e-5 + rounding)


def philox4_32_10(key, counter):
    """Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011); nine of the ten rounds, as torch's header."""
    multipliers, weyl = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
    for _ in range(9):
        high, low = zip(*(divmod(m * counter[2 * i], 2**32) for i, m in enumerate(multipliers)))
        counter = [high[1] ^ counter[1] ^ key[0], low[1], high[0] ^ counter[3] ^ key[1], low[0]]
        key = [(k + w) % 2**32 for k, w in zip(key, weyl)]
    return counter


def test_random_numbers(tmp_path):
    library = Library(compiled(tmp_path, RANDOM))
    seed, offset, count = 0x1234567890abcdef, 2**33 + 5, 100
    raw, integer = np.zeros((count, 4), np.uint32), np.zeros(count, np.int64)
    uniform, normal = np.zeros((2, count), np.float32)
    library.launch("random", {0: raw, 1: uniform, 2: normal, 3: integer, 4: np.int64([seed, offset])}, 32, threads=count)
    halves = [[value >> 32, value & 0xffffffff] for value in [seed, *range(offset, offset + count)]]
    expected = np.array([philox4_32_10(halves[0], [0, 0, *index]) for index in halves[1:]])
    assert np.array_equal(raw, expected)
    unit = (expected & 0x7fffffff) * 2.0**-31
    np.testing.assert_allclose(uniform, unit[:, 0], rtol=1e-6)
    box_muller = np.sqrt(-2 * np.log1p(-unit[:, 0])) * np.cos(2 * math.pi * (1 - unit[:, 1]))
    np.testing.assert_allclose(normal, box_muller, rtol=1e-4, atol=1e-6)
    assert np.array_equal(integer, np.floor(unit[:, 0] * 25) - 5)


def test_thread_sanitizer_has_nothing_to_say(tmp_path):
    name = "prefill_attention_float16_bq32_bk16_bd128_wm4_wn1_hm0_dc1_maskfloat16"
    path = compiled(tmp_path, ATTENTION, f"^(sdpa_vector_half_128_128_masknone|{name})$", "thread")
    q, k, v = (array(t) for t in random_qkv(1, 2, 1, 1, 70, 128, torch.float16))
    one = {0: q, 1: k, 2: v, 3: np.zeros_like(q), **decode_bindings(q, k, 4)}
    decode = write_launch(tmp_path / "decode.launch", "sdpa_vector_half_128_128_masknone", one, 1024, 2)
    q, k, v = (array(t) for t in random_qkv(1, 2, 1, 40, 40, 128, torch.float16))
    many = {0: q, 1: k, 2: v, **prefill_bindings(q, k, np.zeros_like(q)), 5: uint32(0, 0, 0, 0), 6: uint32(0)}
    prefill = write_launch(tmp_path / "prefill.launch", name, many, (32, 4), (2, 2, 1))
    for schedule in SCHEDULES:
        done = replay(path, [decode, prefill], "thread", schedule)
        assert (done.returncode, done.stderr) == (0, "")
