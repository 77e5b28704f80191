"""The CUDA kernels without a GPU: clang compiles their program for the rig, where they do what the Metal kernels did with the same bytes."""

import re

import numpy as np
import pytest
from rig.cuda.compile import embed_cuda
from rig.cuda.launch import read_dispatch, run

TOLERANCE = 1e-3  # of the largest output: the matrix units take the values' weights as fp16
MERGED = 1e-6  # parts are added up in another order
OUT, PARTIAL, STATISTICS = 13, 14, 15
CODEBOOKS = ("uniform", "lloyd", "absmax", "asymmetric")


def described(dispatch):
    """attend_matrix_128 4 4 lloyd decode"""
    k_bits, v_bits, book, paged, decode = dispatch.constants
    recipe = f" {k_bits} {v_bits} {CODEBOOKS[book]}" if k_bits else ""
    return dispatch.kernel + recipe + " paged" * paged + " decode" * decode


@pytest.fixture(scope="session")
def dispatches(recordings):
    """Those whose description a pattern matches."""
    paths = [(described(read_dispatch(path)), path) for all_of_one in recordings.values() for path in all_of_one]
    return lambda pattern: [read_dispatch(path) for description, path in paths if re.fullmatch(pattern, description)]


def numbers(data):
    return np.frombuffer(data, np.float32).astype(np.float64)


def has_same_parts(dispatch, large):
    """Whether each split has the tokens that Metal gives it: of other codebooks than Lloyd-Max that with the newest rows has fewer codes."""
    return not large and (dispatch.constants[2] == CODEBOOKS.index("lloyd") or not dispatch.kernel.startswith("attend_matrix"))


def parts_of(dispatch, buffers):
    """What attend made: its output; or, of tokens that are split, each part's output and log2 of its sum, whatever its maximum."""
    if dispatch.threadgroups[0] == 1:
        return numbers(buffers[OUT]), np.zeros(1)
    statistics = numbers(buffers[STATISTICS]).reshape(-1, 2)
    seen = statistics[:, 1] > 0
    partial = numbers(buffers[PARTIAL]).reshape(len(statistics), -1)[seen]
    return partial / statistics[seen, 1:], statistics[seen, 0] + np.log2(statistics[seen, 1])


def rows_of(dispatch, buffers):
    """What attend made of all tokens, whatever the tokens of its parts: its output and, of tokens that are split, log2 of all weights."""
    splits = dispatch.threadgroups[0]
    if splits == 1:
        return numbers(buffers[OUT]), np.zeros(1)
    maxima, sums = np.moveaxis(numbers(buffers[STATISTICS]).reshape(-1, splits, 2), 2, 0)
    seen = sums > 0
    top = np.where(seen, maxima, -np.inf).max(1, keepdims=True)
    weights = np.where(seen, np.exp2(np.where(seen, maxima - top, 0)), 0)
    partial = np.where(seen[..., None], numbers(buffers[PARTIAL]).reshape(*seen.shape, -1), 0)
    total = (weights * np.where(seen, sums, 0)).sum(1)
    found = total > 0
    rows = (weights[..., None] * partial).sum(1)[found] / total[found, None]
    return rows, top[found, 0] + np.log2(total[found])


def is_as_recorded(dispatch, buffers, large=False):
    if dispatch.kernel.startswith("merge"):
        return all(np.allclose(numbers(buffers[index]), numbers(data), rtol=0, atol=MERGED, equal_nan=True) for index, data in dispatch.after.items())
    if not dispatch.kernel.startswith("attend"):
        return all(buffers[index] == data for index, data in dispatch.after.items())
    made = parts_of if has_same_parts(dispatch, large) else rows_of
    (found, sums), (expected, expected_sums) = (made(dispatch, dispatch.before | those) for those in (buffers, dispatch.after))
    if found.shape != expected.shape or not np.array_equal(np.isnan(found), np.isnan(expected)):
        return False
    return np.nanmax(abs(found - expected)) <= TOLERANCE * np.nanmax(abs(expected)) and abs(sums - expected_sums).max() <= TOLERANCE


@pytest.mark.parametrize("pattern", [
    r"attend_matrix_128 \d \d \w+", r"attend_matrix_(64|256) \d 4 (uniform|lloyd)", r"attend_matrix_\d+ .* decode", r"attend_matrix_\d+ .* paged",
    r"attend_simd_[12] 4 4 (uniform|lloyd)( paged)?", r"(quantize|dequantize)_(64|128)( paged)?", r"merge_\d+( decode)?"])
def test_they_do_what_the_metal_kernels_do(dispatches, pattern):
    found = dispatches(pattern)
    assert found
    assert [described(d) for d in found if not is_as_recorded(d, run(d))] == []


@pytest.mark.parametrize("pattern", [r"attend_matrix_(64|128|256) 4 4 lloyd( decode)?", r"attend_matrix_128 4 4 lloyd paged", r"attend_matrix_128 [38] \d absmax", r"merge_64 decode"])
def test_large_blocks_do_too(dispatches, pattern):
    found = dispatches(pattern)
    assert found
    assert [described(d) for d in found if not is_as_recorded(d, d.before | run(d, large=True), large=True)] == []


@pytest.mark.parametrize("schedule", [1, 2, 3], ids=["backward", "random simdgroups", "random threads"])
def test_any_order_of_threads_gives_the_same_bits(dispatches, schedule):
    for dispatch in dispatches(r"attend_matrix_128 4 4 (uniform decode|lloyd paged)"):
        first, second = run(dispatch), run(dispatch, schedule=schedule)
        written = [OUT] if dispatch.threadgroups[0] == 1 else [PARTIAL, STATISTICS]
        assert all(first[index] == second[index] for index in written)


# (what was broken, its kernel, text, what it became). Copies arrive as late as the waits allow.
MUTANTS = [
    ("a tile read before it is there", "attend_matrix_128 4 4 uniform decode", "await_groups<Ring<D, B>::stages - 1>();", ""),
    ("one tile too few waited for", "attend_matrix_128 4 4 uniform decode", "await_groups<Ring<D, B>::stages - 1>();",
     "await_groups<Ring<D, B>::stages>();"),
    ("keys of another line of the ring", "attend_matrix_256 4 4 lloyd", "(lane ^ (permuted(bytes, fixed) & 0x7f))",
     "(lane ^ (fixed & 0x7f))"),
    ("what values have beside their level left in", "attend_matrix_128 4 4 uniform decode", "fma(-beside[i / 2], sums.offset[i % 2], sums.o[f][i])",
     "sums.o[f][i]"),
    ("low bytes of queries taken for signed ones", "attend_matrix_128 4 4 uniform decode", "below.x ^ kByteTops", "below.x"),
    ("levels of the other side", "attend_matrix_128 4 4 lloyd", "above = look_up<4, 7, -1>(mirror)", "above = look_up<4, 7, -1>(low)"),
    ("scales of the wrong tokens", "attend_matrix_128 4 4 lloyd", "at.quarter * sizeof scales", "(at.quarter ^ 1) * sizeof scales"),
    ("a tile beyond the end of its page", "attend_matrix_64 4 4 lloyd paged", "int(min(k.capacity - k.slot(tile), v.capacity - v.slot(tile)))", "4096"),
]


@pytest.mark.parametrize("what, pattern, text, became", MUTANTS, ids=[mutant[0] for mutant in MUTANTS])
def test_a_mutant_is_caught(dispatches, what, pattern, text, became):
    source = embed_cuda.source()
    assert source.count(text) == 1, f"{source.count(text)} places to break"
    broken = source.replace(text, became)
    assert not all(is_as_recorded(dispatch, run(dispatch, broken)) for dispatch in dispatches(pattern))
