"""The project's Metal kernels on the rig: every entry point, under other schedules and sanitizers; and mutants, each caught."""

import os
import re
import subprocess
import sys
from pathlib import Path

import metal_calls
import pytest
from rig.msl.compile import build_replay, compile_metal
from rig.sandbox import Sandbox

TESTS = Path(__file__).parent
CSRC = TESTS.parent / "csrc"
sys.path.insert(0, str(CSRC / "gpu"))
import embed_metal  # noqa: E402

sandbox = Sandbox("metal_calls")


def run(*command, **environment):
    quiet = dict(OMP_NUM_THREADS="1", PYTHONPATH=str(TESTS))
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, env=os.environ | quiet | environment, timeout=600)


def kernels_from(text, folder, **options):
    """The compiled kernels of a Metal source text."""
    source = folder / "int4kv.metal"
    source.write_text(text)
    return compile_metal(source, folder / "int4kv.so", **options)


def replay(library, paths, *arguments, sanitize=None):
    return run(build_replay(sanitize), library, *paths, *arguments)


def matching(recordings, only):
    return [path for kernel, paths in recordings.items() if re.search(only, kernel) for path in paths]


def test_every_entry_point_runs_and_agrees_with_the_cpu(recordings):
    instances = re.findall(r"^INT4KV_ENTRY\((\w+),", embed_metal.source(), re.MULTILINE)
    assert len(instances) == 29 and set(recordings) == set(instances)


@pytest.mark.parametrize("schedule", [("0",), ("1",), ("2", "--repeat", "3")])
def test_any_order_of_lanes_and_simdgroups_gives_the_same_bits(recordings, tmp_path, schedule):
    library = kernels_from(embed_metal.source(), tmp_path)
    done = replay(library, matching(recordings, "."), "--schedule", *schedule)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("sanitize", ["thread", "address", "undefined"])
def test_sanitizers_find_nothing(recordings, tmp_path, sanitize):
    library = kernels_from(embed_metal.source(), tmp_path, sanitize=sanitize)
    done = replay(library, matching(recordings, "."), sanitize=sanitize)
    assert done.returncode == 0 and "Sanitizer" not in done.stderr, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("cores", ["1", "40"])
def test_any_number_of_cores_and_so_of_splits(cores):
    """8 cores, the rig's own number, make 24 splits of 9000 tokens: more than merge has simdgroups; 40 make 35: more than lanes."""
    done = sandbox.run(metal_calls.check, {"RIG_CORES": cores})
    assert done.status == 0, done.output


def test_guard_pages_find_no_access_beyond_a_buffer():
    done = sandbox.run(metal_calls.check, {"RIG_GUARD": "1"})
    assert done.status == 0, done.output


BARRIER = "  threadgroup_barrier(mem_flags::mem_threadgroup);\n"
SIMD_BARRIER = "  simdgroup_barrier(mem_flags::mem_threadgroup);"

# (what was broken, its kernels, text, what it became, how it shows: "race" under ThreadSanitizer, "result" in any run)
KERNEL_MUTANTS = [
    ("no barrier after the queries are loaded", "attend_simd_2", BARRIER + "\n  Lane lane", "\n  Lane lane", "race"),
    ("no barrier between reading rows and laying them out", "attend_matrix_64",
     BARRIER + "  for (uint n = 0; n < INT4KV_COLUMNS / INT4KV_SIMDGROUPS; n++) {\n    uint column",
     "  for (uint n = 0; n < INT4KV_COLUMNS / INT4KV_SIMDGROUPS; n++) {\n    uint column", "race"),
    ("no barrier after laying out", "attend_matrix_64", "= x[n][u];\n    }\n  }\n" + BARRIER, "= x[n][u];\n    }\n  }\n", "race"),
    ("turns without a barrier", "attend_matrix_64", "  " + BARRIER + "    if (turn == simdgroup) join_sums",
     "    if (turn == simdgroup) join_sums", "race"),
    ("weights read before they are written", "attend_matrix_64", SIMD_BARRIER + "\n}\n\ninline Fragment weight_fragment",
     "}\n\ninline Fragment weight_fragment", "race"),
    ("weights overwritten while they are read", "attend_matrix_64", SIMD_BARRIER + "  // the weights", "  // the weights", "race"),
    ("merge without a barrier", "merge_64", BARRIER + "  if (simdgroup != 0) return;", "  if (simdgroup != 0) return;", "race"),
    ("half of the fragment's columns swapped", "attend_matrix_64", "return ((lane >> 1) & 4) + (lane & 1) * 2;",
     "return ((lane >> 1) & 4) + (lane & 1) * 2 ^ 4;", "result"),
    ("a query sees one token too few", "attend_simd_1", "clamp(position + 1, 0, keys)", "clamp(position, 0, keys)", "result"),
    ("a ring that wraps one slot late", "attend_simd_1|quantize_64", "return slot < capacity ? slot", "return slot <= capacity ? slot", "bounds"),
    ("a plane folded with a wrong shift", "quantize_128", "<< (apart / 4)", "<< (apart / 8 + 2)", "result"),
    ("a plane shifted wrongly by lanes in the middle of a unit", "attend_simd", "width * ((first + w) % kWordsPerUnit / width)",
     "width * (w / width)", "result"),
    ("the high plane forgotten", "attend_simd_1", "if (bits > 4) found |=", "if (bits > 8) found |=", "result"),
    ("the high plane of three bits forgotten", "attend_simd_1", "code.low |= high << 2;", "code.low |= 0;", "result"),
    ("the high plane looked for behind a plane of 4 bits", "attend_simd_1", "row + head_dim * low / 8", "row + head_dim / 2", "result"),
    ("codes centred as absmax has them", "attend_simd_1", "half_count : half_count - 0.5f", "half_count : half_count", "result"),
    ("a minimum without its scale's group", "attend_simd", "source.scale(token, 2 * group + 1)", "source.scale(token, 1)", "result"),
    ("Lloyd-Max rounded to the wrong integer", "attend_simd_1", "? 56.35f : bits == 4 ? 45.015f : 36.695f",
     "? 56.35f : bits == 4 ? 45.6f : 36.695f", "result"),
    ("the second best clip", "quantize_128", "if (gain <= best.gain) return;", "if (gain >= best.gain && best.gain > 0.0f) return;", "result"),
    ("a tie of two levels to the inner one", "quantize_128", "distance >= upper_border<bits>(i) ? 1 : 0", "distance > upper_border<bits>(i) ? 1 : 0", "result"),
    ("the other one of two levels", "quantize_128", "< low + high ? low : high", "< low + high ? high : low", "result"),
    ("a border beyond which a level is not looked for", "quantize_128", "(float(lane) + 0.501f) * kWidth", "(float(lane) - 0.501f) * kWidth", "result"),
    ("V's centre added by every split as well", "attend_simd_2", "if (first == 0 && lane == 0) output.statistics[slot] = float2(joined.maximum, joined.sum);",
     "if (first == 0 && lane == 0) output.statistics[slot] = float2(joined.maximum, joined.sum);\n"
     "  output.partial[slot * p.head_dim + lane] += joined.sum * output.centre[lane];", "result"),
    ("V's centre added to what saw nothing", "attend_matrix_64", "p.has_v_centre && sum != 0.0f", "p.has_v_centre", "result"),
    ("sinks read from codes", "attend_simd_1", "decode ? span.lo : clamp(p.sinks, span.lo, span.hi);", "span.lo;", "result"),
    ("blocks of a rotation ignored", "quantize_64", "if (apart >= block) continue;", "", "result"),
    ("K's scale of the wrong token", "attend_matrix_64", "scales.of[b] = four[b];", "scales.of[b] = four[b ^ 1];", "result"),
    ("recent rows from the wrong slot", "attend_simd_1", "uint(token - origin)", "uint(token - origin + 1) % capacity", "result"),
    ("the mask forgotten", "attend_simd_1", "!p.has_mask ||", "true ||", "result"),
    ("no rescale when a maximum moves", "attend_matrix_64", "  rescale<D, N>(sums, by, filled, found.v_scale, task.at);\n", "", "result"),
    ("every tile taken for a whole one", "attend_matrix_64", "common.has(tile)", "true", "result"),
    ("a slot behind the last page", "quantize_64", "number < long(count)", "number <= long(count)", "bounds"),
    ("a page that does not exist", "attend", "min(uint(table[index]), count - 1)", "uint(table[index])", "bounds"),
    ("the table asked beyond a sequence", "attend_matrix_64", "!is_paged() || token < pages.end", "true", "bounds"),
    ("the ring of another sequence", "attend_matrix_64", "s.ring = min(uint(ring), p.rings - 1);", "s.ring = 0;", "result"),
    ("queries of the sequence before", "attend_matrix_64", "row.query = sequence.first + within;", "row.query = within;", "result"),
    ("a split left out", "merge_64", "statistics + s, int(p.splits) - s, kChannels", "statistics + s, int(p.splits) - s - 1, kChannels", "result"),
    ("products fused into sums", "quantize_64", "#pragma clang fp contract(off)", "", "result"),
    ("a store beyond the row", "dequantize_64", "long(INT4KV_UNIT * u + lane) * rows.channel, x[u])",
     "long(INT4KV_UNIT * u + lane + 1) * rows.channel, x[u])", "bounds"),
]


@pytest.mark.parametrize("what, only, text, became, how", KERNEL_MUTANTS, ids=[m[0] for m in KERNEL_MUTANTS])
def test_a_mutant_of_a_kernel_is_caught(recordings, tmp_path, what, only, text, became, how):
    source = embed_metal.source()
    assert source.count(text) == 1, f"{source.count(text)} places to break"
    sanitize = {"race": "thread", "bounds": "address"}.get(how)
    library = kernels_from(source.replace(text, became), tmp_path, sanitize=sanitize, only=only)
    done = replay(library, matching(recordings, f"^({only})"), sanitize=sanitize)
    assert done.returncode != 0
    expected = {"race": "ThreadSanitizer: data race", "bounds": "AddressSanitizer: heap-buffer-overflow"}.get(how)
    assert expected in done.stderr if expected else "differs from byte" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


# (what was broken, its file, text, what it became, the rig's words)
HOST_MUTANTS = [
    ("a binding left out", "gpu/attend.cpp", "&t.recent_starts},", "},", "attend_"),
    ("a buffer too short", "gpu/attend.cpp", "rows * plan.splits, shape.head_dim}", "rows * plan.splits / 2, shape.head_dim}", ""),
    ("the storage offset forgotten", "mps/encoding.mm", "offset:bound.storage_offset() * bound.element_size()",
     "offset:0 * bound.element_size()", ""),
    ("the encoder taken outside the queue's block", "mps/encoding.mm", "  at::mps::dispatch_sync_with_rethrow(",
     "  stream->commandEncoder();\n  at::mps::dispatch_sync_with_rethrow(", "commandEncoder"),
    ("sinks counted from the op's start", "gpu/attend.cpp", "plain_rows_of(t.v_sink, start)", "plain_rows_of(t.v_sink, 0)", "apart"),
    ("codes of a narrower width", "gpu/stored.cpp", "static_cast<unsigned>(bits_of(codes, head_dim))", "4", ""),
    ("an encoder ended under torch's feet", "mps/encoding.mm", "  profiler.endProfileKernel(pipeline.state);",
     "  profiler.endProfileKernel(pipeline.state);\n  [encoder endEncoding];", "endEncoding"),
    ("a library that Metal refuses", "mps/pipelines.mm", "kMetalLibraryBytes ? from_library(device, &error) : from_source(device, &error)",
     "from_library(device, &error)", "int4kv: the Metal library cannot be loaded"),
    ("a threadgroup too large", "mps/encoding.mm", "needed = dispatch.kernel.simdgroups() * INT4KV_SIMD", "needed = 2048",
     "needs 2048 threads per threadgroup and this device allows 1024"),
]


@pytest.mark.parametrize("what, file, text, became, words", HOST_MUTANTS, ids=[m[0] for m in HOST_MUTANTS])
def test_a_mutant_of_the_host_code_is_caught(tmp_path, what, file, text, became, words):
    source = (CSRC / file).read_text()
    assert source.count(text) == 1, f"{source.count(text)} places to break"
    mutated = tmp_path / Path(file).name
    mutated.write_text(source.replace(text, became).replace('"../', f'"{CSRC}/'))
    done = sandbox.run(metal_calls.check, {"RIG_GUARD": "1"}, mutated=mutated)
    assert done.status != 0
    assert words in done.output, done.output[-2000:]
