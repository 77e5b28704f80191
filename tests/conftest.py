"""pytest --device cpu (default), mps or cuda: the same tests for each. A test that cannot run is a failure, not a skip."""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

DEVICES = ("cpu", "mps", "cuda")
ABOUT = {"cpu_only": ("cpu",), "mps_only": ("mps",), "cuda_only": ("cuda",), "gpu_only": ("mps", "cuda"),
         "two_gpus_only": ("two cuda",)}
# Run once, beside the CPU.
ABOUT_SOURCES = (
    "test_build.py", "test_cpu_emulated.py", "test_cuda_build.py", "test_cuda_kernels.py", "test_cuda_source.py", "test_macos.py", "test_rig_*.py",
    "test_metal_kernels.py",
)
FOR_LINUX = ("test_cpu_emulated.py", "test_cuda_kernels.py", "test_macos.py", "test_rig_*.py", "test_metal_*.py")  # emulators, the rig and what it counts


def pytest_addoption(parser):
    parser.addoption("--device", choices=DEVICES, default="cpu", help="where the ops and models under test run")


def pytest_configure(config):
    for marker, devices in ABOUT.items():
        config.addinivalue_line("markers", f"{marker}: about {' and '.join(devices)}")
    if not only_distributes(config):
        import_all(config)


def only_distributes(config):
    """Whether the tests run in other processes, which prepare themselves. What --device refuses is said by this one."""
    return config.getoption("numprocesses", None) and not hasattr(config, "workerinput") and config.getoption("device") != "cuda"


def import_all(config):
    """The garbage collector is told to leave the half a million objects alone that this makes, now and later."""
    gc.disable()
    prepare(config.getoption("device"))
    config.pluginmanager.import_plugin("tiny_models")  # not before: transformers asks torch for its devices when imported
    gc.freeze()
    gc.enable()


def prepare(device):
    """Choose the device before anything asks torch for it: without a Mac, mps is the emulated one of tests/rig."""
    os.environ["INT4KV_DEVICE"] = device
    emulated = device == "mps" and sys.platform != "darwin"
    if emulated:
        from rig import device as rig_device

        rig_device.load()
    import torch

    import int4kv  # noqa: F401

    if emulated:
        rig_device.load_ops()
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device is cuda, and torch sees no CUDA device; accepted here are cpu and mps")
    torch.set_num_threads(1)  # the models are tiny and two test processes share two cores


def kinds(config):
    """What the markers of ABOUT may ask for: the device, and two of them where there are."""
    device = config.getoption("device")
    if device != "cuda":
        return {device}
    import torch

    return {device} | {"two cuda"} if torch.cuda.device_count() > 1 else {device}


def pytest_report_header(config):
    return f"device: {', '.join(sorted(kinds(config)))}"


def pytest_ignore_collect(collection_path, config):
    device = config.getoption("device")
    left_out = ABOUT_SOURCES * (device != "cpu") + FOR_LINUX * (sys.platform != "linux" or device == "cuda")
    return True if any(collection_path.match(name) for name in left_out) else None


def pytest_collection_modifyitems(config, items):
    """Tests that are not about this device are no part of the run."""
    markers = [marker for marker, devices in ABOUT.items() if kinds(config).isdisjoint(devices)]
    elsewhere = {item for item in items if any(map(item.get_closest_marker, markers))}
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return refuse_skip((yield))


def refuse_skip(report):
    if report.skipped:
        report.longrepr = f"{report.nodeid} was skipped, which counts as a failure: {report.longrepr}"
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once(name, make): a folder that make(folder) has filled, once for all test processes of this run."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder_of(name, make):
        folder, partial = shared / name, shared / f"{name}.partial"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                make(partial)
                partial.rename(folder)
        return folder

    return folder_of


def record_metal_calls(folder):
    tests = Path(__file__).parent
    environment = os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=str(tests), RIG_RECORD=str(folder), RIG_POISON="1")
    done = subprocess.run([sys.executable, tests / "metal_calls.py"], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def recordings(made_once):
    """{Metal kernel: its recorded dispatches} of metal_calls.py, run with fresh buffers full of NaN: mps and CPU agree."""
    found = {}
    for path in sorted(made_once("recordings", record_metal_calls).glob("*.launch")):
        header = path.read_bytes()[:64]
        found.setdefault(header[12 : 12 + header[8]].decode(), []).append(path)
    return found
