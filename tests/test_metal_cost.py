"""The static cost of the Metal kernels: every hot loop is counted, and none has become dearer than it was."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import llvm_ir  # noqa: E402
import metal_cost  # noqa: E402
import metal_ir  # noqa: E402

pytestmark = pytest.mark.cpu_only

# Issue slots of one code, optimistic and pessimistic, as counted with clang 19; a compiler may differ by SLACK.
RECORDED = {
    "attend_matrix_64": (11.6, 21.6),
    "attend_matrix_128": (11.0, 19.7),
    "attend_matrix_256": (10.9, 20.2),
    "attend_simd_1_64": (4.5, 11.7),
    "attend_simd_1_128": (4.5, 11.8),
    "attend_simd_1_256": (4.6, 11.9),
    "attend_simd_2_64": (6.0, 13.4),
    "attend_simd_2_128": (6.2, 13.6),
    "attend_simd_2_256": (6.3, 13.8),
    "attend_matrix_128_k4v4_uniform": (11.1, 19.2),
    "attend_simd_2_128_k4v4_uniform": (6.3, 13.1),
    "attend_matrix_128_k5v4_lloyd": (12.5, 22.1),
    "attend_simd_2_128_k5v4_lloyd": (7.7, 16.4),
    "attend_matrix_128_k8v4_lloyd": (11.9, 21.6),
    "attend_simd_2_128_k8v4_lloyd": (7.0, 15.6),
    "attend_matrix_128_k3v3_lloyd": (11.6, 20.7),
    "attend_simd_2_128_k3v3_lloyd": (7.0, 16.6),
    "quantize_128": (109.0, 315.2),
    "dequantize_128": (35.2, 155.5),
    "merge_128": (55.8, 217.8),
}
LOOPS = [name for name in RECORDED if name.startswith("attend")]
SLACK = 1.02
REGISTERS = 128  # that a thread has when three threadgroups of four simdgroups share a core


def count(folder):
    command = [sys.executable, ROOT / "bench" / "metal_cost.py", "--json", folder / "cost.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)


@pytest.fixture(scope="module")
def ran(made_once):
    folder = made_once("cost", count)
    return (folder / "printed.txt").read_text(), json.loads((folder / "cost.json").read_text())


@pytest.fixture(scope="module")
def loops(ran):
    return {row["name"]: row for row in ran[1]["rows"]}


def test_every_kernel_is_counted(loops, tmp_path):
    source = tmp_path / "int4kv.metal"
    source.write_text(metal_ir.embed_metal.source())
    kernels = {name for name in metal_ir.translate(source).host_names if not name.startswith(("quantize", "dequantize", "merge"))}
    assert kernels | {"quantize_128", "dequantize_128", "merge_128"} == {row["kernel"] for row in loops.values()}
    assert set(loops) == set(RECORDED)


def widths(name):
    """Bits of K and of V."""
    found = re.search(r"_k(\d)v(\d)_", name)
    return (int(found[1]), int(found[2])) if found else (4, 4)


@pytest.mark.parametrize("name", LOOPS)
def test_a_code_moves_the_bytes_of_the_format(loops, name):
    codes_and_scale = sum(widths(name)) / 16 + 2 / loops[name]["head_dim"]
    assert loops[name]["bytes_per_code"] == codes_and_scale


@pytest.mark.parametrize("name", LOOPS)
def test_a_pass_reads_the_codes_of_its_tokens(loops, name):
    """A quarter of four or two tokens of a block, K and V, in the matrix kernel; 16 channels of four tokens in the other one."""
    channels = {64: 4 * 16, 128: 4 * 32, 256: 2 * 64}[loops[name]["head_dim"]] if "matrix" in name else 4 * 16
    assert loops[name]["codes_per_lane_and_pass"] == 2 * channels


@pytest.mark.parametrize("name", RECORDED)
def test_no_loop_is_dearer_than_recorded(loops, name):
    for found, recorded in zip(loops[name]["slots_per_code"], RECORDED[name]):
        assert found <= SLACK * recorded


@pytest.mark.parametrize("name", LOOPS)
def test_unpacking_is_counted(loops, name):
    """Of two codes a shift, and an `and` each; a width of more than one plane takes more."""
    per_code, more = loops[name]["per_code"], widths(name) != (4, 4)
    assert per_code["integer"] >= (1.4 if more else 1.0)
    assert per_code["shift"] >= (0.5 if more else 0.37)


@pytest.mark.parametrize("kernel", ["attend_matrix_128", "attend_simd_2_128"])
def test_a_level_of_lloyd_max_is_one_shuffle_and_no_arithmetic(loops, kernel):
    lloyd, uniform = (loops[name]["per_code"] for name in (kernel, f"{kernel}_k4v4_uniform"))
    assert lloyd["shuffle"] - uniform["shuffle"] == 1
    assert lloyd["float"] == uniform["float"] and "half" not in lloyd


@pytest.mark.parametrize("name", [name for name in LOOPS if "256" not in name])
def test_what_is_alive_fits_the_registers(loops, name):
    assert loops[name]["words_alive"] <= REGISTERS


@pytest.mark.parametrize("name", [name for name in LOOPS if "matrix" in name])
def test_a_matrix_multiply_serves_two_codes_of_a_lane(loops, name):
    assert loops[name]["per_code"]["matrix multiply"] == 0.5


def test_the_expectation_is_a_range_and_called_a_model(ran):
    printed, found = ran
    assert "A model, not a measurement" in printed and "not a measurement" in found["kind"]
    shares = [share for row in found["expected"] for share in row["bus_share"].values()]
    assert len(shares) == len(metal_cost.LAYOUTS) * len(metal_cost.MACHINES)
    assert all(0 < low < high <= 1 for low, high in shares)


def test_what_cannot_be_counted_is_refused():
    call = llvm_ir.Instruction("%1", "call", "float @llvm.sin.f32(float %0)")
    with pytest.raises(ValueError, match="llvm.sin"):
        llvm_ir.class_of(call)
    private = llvm_ir.Instruction("%1", "load", "i32, ptr addrspace(5) %0, align 4")
    with pytest.raises(ValueError, match="address space 5"):
        llvm_ir.class_of(private)
    with pytest.raises(ValueError, match="no loop reads codes"):
        llvm_ir.hot_loop({"%entry": [llvm_ir.Instruction("", "ret", "void")]})
