"""The emulated device's Metal: right ops run, a mistake that a Mac punishes ends with a sentence, modes do what they say."""

import signal
import struct

import pytest
import torch

from rig import build, device
from rig.msl.compile import compile_metal
from rig.msl.recording import read_launch, replay
from rig.sandbox import Sandbox

SAMPLE = build.RIG / "sample"

sandbox = Sandbox(__name__)


def prepare():
    torch.set_num_threads(1)
    device.load()
    device.load_ops([SAMPLE / "scale.mm", SAMPLE / "faults.mm"], name="rig_sample")


@sandbox.test()
@pytest.mark.parametrize("kernel", ["scale", "scale_constant", "scale_staged"])
def test_an_op_runs_its_kernel(kernel):
    x = torch.randn(1000)
    moved = x.to("mps")
    torch.ops.sample.scale_(moved, 3.0, kernel)
    torch.ops.sample.scale_(moved[7:900], 0.5, kernel)
    x *= 3
    x[7:900] *= 0.5
    assert torch.equal(moved.cpu(), x)


@sandbox.test()
def test_function_constants_make_separate_kernels():
    x = torch.ones(4, device="mps")
    for factor in (2.0, 5.0, 2.0):
        torch.ops.sample.scale_(x, factor, "scale_constant")
    assert x.tolist() == [20.0] * 4


@sandbox.test()
def test_dispatches_share_an_encoder_and_run_in_order():
    x = torch.ones(4, device="mps")
    device.reset_counters()
    for kernel in ("scale", "scale_staged", "scale"):
        torch.ops.sample.scale_(x, 2.0, kernel)
    counted = device.counters()
    assert (counted["dispatches"], counted["encoders"], counted["profiled_kernels"]) == (3, 1, 3)
    assert counted["commits"] == counted["waits"] == counted["synchronisations"] == counted["buffers_allocated"] == 0
    assert device.kernels_dispatched() == ["scale", "scale_staged", "scale"]
    torch.mps.synchronize()
    counted = device.counters()
    assert (counted["commits"], counted["waits"], counted["synchronisations"]) == (1, 1, 1)
    assert x.tolist() == [8.0] * 4


@sandbox.test()
def test_memory_is_counted():
    device.reset_counters()
    live = device.counters()["live_bytes"]
    x = torch.ones(100, device="mps")
    y = torch.empty(50, dtype=torch.half, device="mps")
    counted = device.counters()
    assert (counted["buffers_allocated"], counted["bytes_allocated"], counted["live_bytes"] - live) == (2, 500, 500)
    for _ in range(50):
        torch.ops.sample.scale_(x, 1.0)
    torch.mps.synchronize()
    del x, y
    assert device.counters()["live_bytes"] == live


@sandbox.test()
def test_libraries_tell_how_they_were_compiled():
    torch.ops.sample.scale_(torch.ones(1, device="mps"), 1.0)
    assert device.libraries() == [{"functions": ["scale", "scale_staged"], "language_version": "3.1", "fast_math": True}]


@sandbox.test()
def test_the_profiler_is_switched_from_python():
    torch.mps.profiler.start()
    torch.ops.sample.scale_(torch.ones(1, device="mps"), 1.0)
    torch.mps.profiler.stop()
    assert device.counters()["profiled_kernels"] == 1


# Mistakes


def fault(kind):
    torch.ops.sample.fault(torch.ones(8, device="mps"), kind)


ABORTS = {
    "unbound": "scale: buffer 1 is bound to nil",
    "forgotten": "scale: buffer 0 is not bound",
    "offset": "setBuffer: offset 32 of index 0 is past the end of a buffer of 32 bytes",
    "index": "setBuffer: index 31; accepted are 0 to 30",
    "long bytes": "setBytes: length 4097; accepted are 1 to 4096",
    "threadgroup multiple": "setThreadgroupMemoryLength: 24 is no multiple of 16",
    "threadgroup missing": "scale_staged: threadgroup memory 0 has no length",
    "threadgroup total": "scale_staged: threadgroup memory 32784 > 32768",
    "threads": "scale: 32x33x1 threads in a threadgroup; the pipeline's maximum is 1024",
    "empty threadgroup": "scale: the threadgroup 32x0x1 is empty",
    "empty grid": "scale: the grid 0x1x1 is empty",
    "no pipeline": "dispatch without a pipeline state set in this block",
    "after end": "dispatch after endEncoding",
    "commit open": "commit with an open encoder",
    "kept encoder": "dispatch on an encoder that was taken in another block",
    "two encoders": "a command encoder is already encoding to this command buffer",
    "released": "an encoder was released without endEncoding",
    "outside": "commandEncoder() outside a block on the stream's queue",
    "deadlock": "deadlock: dispatch_sync on the serial queue 'metal gpu stream' from a block running on it",
    "plain throw": "a C++ exception left the block of a plain dispatch_sync, which terminates a Mac's process: thrown in",
    "profile": "endProfileKernel of a pipeline whose profile was not begun last",
}

RAISES = {
    "rethrow": "thrown in a block",
    "unsynchronised": "unsynchronised value 1",
    "syntax": ".metal:2:3: error: use of undeclared identifier 'syntax'",
    "version missing": "languageVersion is not set; accepted are MTLLanguageVersion3_1",
    "version new": "languageVersion is 3.2; accepted are MTLLanguageVersion3_1",
    "constant missing": "factor",
    "constant unknown": "the library has no function constant 5",
    "constant size": "function constant 0 was given 2 bytes; it has 4",
    "unknown kernel": "unknown name",
    "descriptor": "labelled takes 64 threads",
    "metallib": "a metallib cannot be opened here; accepted is source text",
}


@pytest.mark.parametrize("kind", ABORTS)
def test_a_fault_ends_the_process(kind):
    outcome = sandbox.run(fault, kind=kind)
    assert outcome.status == -signal.SIGABRT and f"[rig] {ABORTS[kind]}" in outcome.output, outcome.output


@pytest.mark.parametrize("kind", RAISES)
def test_a_fault_raises(kind):
    outcome = sandbox.run(fault, kind=kind)
    assert outcome.status == 1 and "RuntimeError" in outcome.output and RAISES[kind] in outcome.output, outcome.output


def test_a_pipeline_may_allow_fewer_threads():
    outcome = sandbox.run(fault, {"RIG_MAX_THREADS": "512"}, kind="threads")
    assert "the pipeline's maximum is 512" in outcome.output


def not_an_mps_op():
    torch.ops.sample.scale_(torch.ones(1), 1.0)


def test_only_torch_falls_back():
    outcome = sandbox.run(not_an_mps_op)
    assert "NotImplementedError" in outcome.output


# Modes


@sandbox.test(RIG_POISON="1")
def test_poison_fills_fresh_buffers():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.empty(9, dtype=dtype, device="mps").isnan().all()
    assert not torch.zeros(9, device="mps").any()


def write_beyond_a_guarded_buffer():
    torch.ops.sample.fault(torch.ones(8, device="mps"), "beyond the end")
    torch.mps.synchronize()


def write_just_beyond_a_guarded_buffer():
    torch.ops.sample.fault(torch.ones(9, device="mps"), "just beyond the end")
    torch.mps.synchronize()


def test_a_guarded_buffer_ends_at_an_unmapped_page():
    assert sandbox.run(write_beyond_a_guarded_buffer, {"RIG_GUARD": "1"}).status == -signal.SIGSEGV
    outcome = sandbox.run(write_just_beyond_a_guarded_buffer, {"RIG_GUARD": "1"})
    assert "something was written behind a buffer of 36 bytes" in outcome.output


def test_a_guarded_buffer_is_unmapped_once_freed():
    assert sandbox.run(fault, {"RIG_GUARD": "1"}, kind="freed").status == -signal.SIGSEGV


@sandbox.test(RIG_GUARD="1")
def test_guarded_memory_works():
    x = torch.randn(33, 5)
    moved = x.to("mps")
    for _ in range(3):
        torch.ops.sample.scale_(moved, 2.0, "scale_staged")
    assert torch.equal((moved + moved[:1]).cpu(), x * 8 + x[:1] * 8)


@pytest.mark.parametrize("schedule", range(4))
def test_schedules_change_no_result(schedule):
    environment = {"RIG_SCHEDULE": str(schedule), "RIG_SEED": "7"}
    outcome = sandbox.run(test_an_op_runs_its_kernel, environment, kernel="scale_staged")
    assert outcome.status == 0, outcome.output


def read_core_count():
    print(torch.backends.mps.get_core_count())


def test_the_number_of_cores_is_a_mode():
    assert sandbox.run(read_core_count, {"RIG_CORES": "40"}).output.split() == ["40"]
    outcome = sandbox.run(read_core_count, {"RIG_CORES": "many"})
    assert "RIG_CORES is 'many'; accepted are 1 to 1000" in outcome.output


def log_a_fallback():
    torch.ones(3, device="mps").sin()


def test_fallbacks_are_logged():
    assert "[rig] on the CPU: aten::sin.out" in sandbox.run(log_a_fallback, {"RIG_LOG": "1"}).output


def record_two_dispatches():
    x = torch.arange(40.0, device="mps")
    torch.ops.sample.scale_(x[8:], 2.0)
    torch.ops.sample.scale_(x, 3.0, "scale_staged")
    torch.mps.synchronize()


def test_dispatches_are_recorded_and_replayed(tmp_path):
    outcome = sandbox.run(record_two_dispatches, {"RIG_RECORD": str(tmp_path / "launches")})
    assert outcome.status == 0, outcome.output
    first, second = sorted((tmp_path / "launches").glob("*.launch"))
    name, grid, bindings = read_launch(first)
    assert (name, grid) == ("scale", (32, 1, 1, 1, 1, 1, 32, 1, 1))
    (_, index, before, after), factor = bindings[0], struct.unpack("<f", bindings[1][2])[0]
    x = torch.arange(8.0, 40.0)
    assert index == 0 and before == x.numpy().tobytes() and after == (x * 2).numpy().tobytes() and factor == 2
    assert read_launch(second)[1][:9] == (32, 1, 1, 2, 1, 1, 40, 1, 1)
    assert (1, 0, 128, None) in read_launch(second)[2]
    replayed = replay(sample_kernels(tmp_path), [first, second])
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr


def record_two_constants():
    x = torch.arange(40.0, device="mps")
    for factor in (2.0, 3.0):
        torch.ops.sample.scale_(x, factor, "scale_constant")
    torch.mps.synchronize()


def test_function_constants_are_recorded_and_replayed(tmp_path):
    outcome = sandbox.run(record_two_constants, {"RIG_RECORD": str(tmp_path / "launches")})
    assert outcome.status == 0, outcome.output
    paths = sorted((tmp_path / "launches").glob("*.launch"))
    constants = [[binding for binding in read_launch(path)[2] if binding[0] == 2] for path in paths]
    assert constants == [[(2, 0, struct.pack("<f", factor), None)] for factor in (2.0, 3.0)]
    replayed = replay(sample_kernels(tmp_path, source=2), paths)
    assert replayed.returncode == 0 and replayed.stdout.count(": same\n") == 2, replayed.stdout + replayed.stderr
    assert "no function constant 0" in replay(sample_kernels(tmp_path), paths).stderr


def sample_kernels(folder, source=1):
    """The kernels of one of the sample's sources, compiled apart from the device."""
    text = (SAMPLE / "scale.mm").read_text().split('R"METAL(')[source].split(')METAL"')[0]
    (folder / "sample.metal").write_text(text)
    return compile_metal(folder / "sample.metal", folder / "sample.so")
