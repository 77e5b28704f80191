"""CPU kernels for processors that this one is not: tests/cpu/compare_kernels.cpp finds them bit for bit equal to the portable ones,
compare_attention.cpp equal to rounding.

NEON runs under qemu, AVX-512 through SIMDe, what this processor has natively. Debian packages: g++-aarch64-linux-gnu, qemu-user, libsimde-dev.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from int4kv import ops

ROOT = Path(__file__).parent.parent
COMPILE = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wno-psabi"]
SIMDE = Path("/usr/include/simde/x86/avx512.h")
EMULATED = {"neon": (["aarch64-linux-gnu-g++", "-static"], ["qemu-aarch64"])}
if platform.machine() == "x86_64":
    EMULATED["avx512"] = ["g++", f'-DINT4KV_AVX512_EMULATION="{ROOT}/tests/cpu/avx512_emulation.h"'], []
PACKAGES = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user", "g++": "g++"}


def run(command):
    assert shutil.which(command[0]), f"{command[0]} is missing: apt-get install {PACKAGES.get(command[0], command[0])}"
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def compile_kernels(name, compiler, folder, csrc=ROOT / "csrc"):
    """Object files of one set of kernels and of the portable ones."""
    for part in (f"kernels_{name}", "kernels_portable", "levels"):
        built = run([*compiler, *COMPILE, "-c", csrc / "cpu" / f"{part}.cpp", "-o", folder / f"{part}.o"])
        assert built.returncode == 0, built.stderr[-3000:]


def compare(program, name, compiler, emulator, kernels, folder):
    """A comparing program of the kernels in the folder `kernels`, built into another and run."""
    sources = [*kernels.glob("*.o"), ROOT / "tests" / "cpu" / program]
    built = run([*compiler, *COMPILE, f"-DINT4KV_SET={name}", *sources, "-o", folder / "compare"])
    assert built.returncode == 0, built.stderr[-3000:]
    return run([*emulator, folder / "compare"])


PROGRAMS = {"compare_kernels.cpp": 40_000, "compare_attention.cpp": 2_999}  # and how much they compare


def check(done, program, name):
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{name}: ") and int(done.stdout.split()[1]) > PROGRAMS[program]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", [name for name in ops.cpu_kernels() if name != "portable"])
def test_kernels_of_this_processor(made_once, name, program, tmp_path):
    kernels = made_once(f"kernels-{name}", lambda folder: compile_kernels(name, ["g++"], folder))
    check(compare(program, name, ["g++"], [], kernels, tmp_path), program, name)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", EMULATED)
def test_kernels_of_another_processor(made_once, name, program, tmp_path):
    compiler, emulator = EMULATED[name]
    assert name != "avx512" or SIMDE.exists(), "SIMDe is missing: apt-get install libsimde-dev"
    kernels = made_once(f"kernels-{name}-emulated", lambda folder: compile_kernels(name, compiler, folder))
    check(compare(program, name, compiler, emulator, kernels, tmp_path), program, name)


def test_a_kernel_that_rounds_otherwise_is_found(tmp_path):
    header = tmp_path / "csrc" / "cpu" / "simd" / "neon.h"
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    right = "vcvt_f16_f32((float32x4_t)x)"
    assert header.read_text().count(right) == 1
    header.write_text(header.read_text().replace(right, "vcvt_f16_f32(vmulq_n_f32((float32x4_t)x, 1.00001f))"))
    compiler, emulator = EMULATED["neon"]
    compile_kernels("neon", compiler, tmp_path, tmp_path / "csrc")
    done = compare("compare_kernels.cpp", "neon", compiler, emulator, tmp_path, tmp_path)
    assert done.returncode == 1 and "neon and portable differ" in done.stdout


def test_the_steps_of_a_tile_are_timed(tmp_path):
    name = ops.cpu_kernels()[0]
    sources = ["-include", ROOT / "csrc" / "cpu" / f"kernels_{name}.cpp", ROOT / "bench" / "tile_cycles.cpp"]
    built = run(["g++", *COMPILE, f"-DINT4KV_SET={name}", *sources, "-o", tmp_path / "tile_cycles"])
    assert built.returncode == 0, built.stderr[-3000:]
    head, _, *rows = run([tmp_path / "tile_cycles"]).stdout.splitlines()
    assert name in head and [row.split("|")[1].strip() for row in rows] == ["6 heads, 128", "7 heads, 128", "7 heads, 64", "4 heads, 256"]
    assert all(float(row.split("|")[-2]) > 0 for row in rows)
