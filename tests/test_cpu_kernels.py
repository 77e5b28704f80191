"""Every set of CPU kernels that this processor can run writes and reads the same bits; how one is picked."""

import os
import subprocess
import sys

import pytest
import torch
from test_format import BITS, CODEBOOKS, DTYPES, buffers, same_bits

from int4kv import ops
from int4kv.rotation import make_rotation

pytestmark = pytest.mark.cpu_only
HEADS, TOKENS, RECENT = 2, 9, 5


@pytest.fixture(autouse=True)
def restore_kernels():
    before = ops.use_cpu_kernels("portable")
    yield
    ops.use_cpu_kernels(before)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def written_and_read(kernels, x, bits, codebook, group_size, centre, rotation):
    """codes, scales, recent rows and decoded values by one set of kernels."""
    head_dim = x.shape[-1]
    stored = [t.cpu() for t in buffers(1, HEADS, TOKENS + 2, head_dim, group_size, RECENT, bits, codebook)]
    ops.use_cpu_kernels(kernels)
    ops.quantize(x, *stored[:2], 3, centre=centre, rotation=rotation, recent=stored[2], codebook=codebook)
    read = ops.dequantize(*stored[:2], 3, 3 + TOKENS, head_dim, centre=centre, rotation=rotation, dtype=x.dtype, codebook=codebook)
    return *stored, read


def check_all_sets(x, *options):
    expected = written_and_read("portable", x, *options)
    for kernels in ops.cpu_kernels():
        found = written_and_read(kernels, x, *options)
        assert all(same_bits(a, b) for a, b in zip(found, expected)), kernels


def rotations(head_dim):
    yield None
    yield make_rotation("hadamard", head_dim, "cpu").write
    yield make_rotation("hadamard", head_dim, "cpu", block=16).write
    yield make_rotation("srft", head_dim, "cpu").write
    yield rows(HEADS, head_dim, head_dim, seed=4)


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 160, 224, 256])
@pytest.mark.parametrize("codebook", CODEBOOKS)
@pytest.mark.parametrize("bits", BITS)
def test_every_set_gives_the_same_bits(bits, codebook, head_dim):
    for i, rotation in enumerate(rotations(head_dim)):
        x = rows(1, HEADS, TOKENS, head_dim, seed=i).to(DTYPES[i % 3])
        centre = rows(1, HEADS, head_dim, seed=9) if i % 2 else None
        for group_size in {32, head_dim // (2 if head_dim % 64 == 0 else 1), head_dim}:
            check_all_sets(x, bits, codebook, group_size, centre, rotation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_set_reads_any_stride(dtype):
    x = rows(1, TOKENS, 3 * 64, HEADS).to(dtype).permute(0, 3, 1, 2)[..., ::3]
    check_all_sets(x, 4, "lloyd", 64, None, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9, 1e-31, 1e-40, -0.0])
def test_every_set_agrees_on_odd_numbers(value):
    x = rows(1, HEADS, TOKENS, 64)
    x[0, 0, 2], x[0, 1, 5, 7] = value, value
    for codebook in CODEBOOKS:
        check_all_sets(x, 4, codebook, 32, None, None)
    expected = written_and_read("portable", x, 4, "lloyd", 32, None, None)[2]
    assert (expected[0, 1, 8 % RECENT, 7].view(torch.int16) == 0x7E00) == (value != value)  # a NaN is always the same one


def test_names_are_known_and_the_last_one_fits_any_processor():
    names = ops.cpu_kernels()
    assert names[-1] == "portable" and set(names) <= {"avx512", "avx2", "neon", "portable"}
    assert [ops.use_cpu_kernels(name) for name in names] == ["portable", *names[:-1]]


def test_a_set_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="CPU kernels are 'sse9'; accepted on this processor are .*portable"):
        ops.use_cpu_kernels("sse9")
    assert ops.use_cpu_kernels("portable") == "portable"


def child(kernels, code="from int4kv import ops; print(ops.use_cpu_kernels('portable'))"):
    return subprocess.run([sys.executable, "-c", code], env=os.environ | {"INT4KV_CPU": kernels}, capture_output=True, text=True)


def test_the_environment_picks_the_set():
    assert child("portable").stdout.strip() == "portable"
    assert child("").stdout.strip() == ops.cpu_kernels()[0]


def test_the_environment_with_an_unknown_set_is_refused_at_import():
    done = child("sse9", "import int4kv")
    accepted = ", ".join(ops.cpu_kernels())
    assert done.returncode != 0 and f"INT4KV_CPU is 'sse9'; accepted on this processor: {accepted}, or nothing for the best" in done.stderr
