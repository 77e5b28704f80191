"""Kernels under the sanitizers, and recorded launches: right kernels pass, mistakes are reported by file and line."""
import re
from pathlib import Path

import numpy as np
import pytest

from rig.msl.compile import compile_metal
from rig.msl.recording import replay, write_launch

SAMPLES = Path(__file__).parent / "rig" / "msl" / "samples"
SCHEDULES = (0, 1, 2)
ROW = 128
ROWS = np.random.default_rng(5).standard_normal((4, ROW)).astype(np.float32)

REPORTS = {  # (kernel, sanitizer): what is reported, in which line; None: nothing is
    ("reverse", "thread"): None,
    ("neighbours", "thread"): None,
    ("reverse_without_barrier", "thread"): ("data race", "shared[ROW - 1 - i]"),
    ("neighbours_without_barrier", "thread"): ("data race", "shared[i ^ 1]"),
    ("neighbours_after_vote", "thread"): ("data race", "shared[i ^ 1]"),  # a vote orders no memory
    ("one_result", "thread"): ("data race", "out[0] = in"),
    ("reverse", "address"): None,
    ("past_buffer", "address"): ("heap-buffer-overflow", "out[i + 1]"),
    ("past_array", "address"): ("use-after-poison", "shared[i + 1]"),
    ("reverse", "undefined"): None,
    ("past_array", "undefined"): ("index 128 out of bounds", "shared[i + 1]"),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles the sample kernels with a sanitizer, or None."""
    folder = tmp_path_factory.mktemp("sanitizers")
    return lambda sanitize: compile_metal(SAMPLES / "barriers.metal", folder / f"{sanitize}.so", sanitize=sanitize)


def line_of(words):
    lines = (SAMPLES / "barriers.metal").read_text().split("\n")
    return next(number for number, line in enumerate(lines, 1) if words in line)


@pytest.mark.parametrize("kernel,sanitize", REPORTS)
def test_reports(compiled, tmp_path, kernel, sanitize):
    groups = 1 if kernel.startswith("past") else 4  # one row in and out: its end is the buffer's
    buffers = {0: ROWS[:groups], 1: np.zeros((groups, ROW), np.float32)}
    recording = write_launch(tmp_path / "one.launch", kernel, buffers, ROW, groups)
    found = REPORTS[kernel, sanitize]
    for schedule in SCHEDULES:
        done = replay(compiled(sanitize), [recording], sanitize, schedule)
        if found is None:
            assert (done.returncode, done.stderr) == (0, "")
        else:
            assert done.returncode != 0 and found[0] in done.stderr
            assert re.search(rf"barriers.metal:{line_of(found[1])}\b", done.stderr)


def test_replay_compares_bit_for_bit(compiled, tmp_path):
    before, out = {0: ROWS, 1: np.zeros_like(ROWS)}, (ROWS[:, ::-1] + 1)[:, np.arange(ROW) ^ 64]
    good = write_launch(tmp_path / "good.launch", "reverse", before, ROW, 4, after={0: ROWS, 1: out.copy()})
    done = replay(compiled(None), [good], schedule=2, repeat=3)
    assert done.returncode == 0 and done.stdout.count(": same\n") == 3
    wrong = out.copy()
    wrong.view(np.uint8)[2, 9] ^= 1
    bad = write_launch(tmp_path / "bad.launch", "reverse", before, ROW, 4, after={1: wrong})
    done = replay(compiled(None), [good, bad])
    assert done.returncode == 1 and "buffer 1 differs from byte 1033" in done.stdout


def test_replay_says_what_is_wrong_with_a_recording(compiled, tmp_path):
    good = write_launch(tmp_path / "good.launch", "reverse", {0: ROWS, 1: ROWS}, ROW, 4).read_bytes()
    cases = {"ends too early": good[:-9], "not a recorded launch": b"X" + good[1:],
             "no kernel reversX": good.replace(b"reverse", b"reversX")}
    for message, contents in cases.items():
        (tmp_path / "wrong.launch").write_bytes(contents)
        done = replay(compiled(None), [tmp_path / "wrong.launch"])
        assert done.returncode == 1 and message in done.stderr
