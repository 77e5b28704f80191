"""pytest --device cpu (default) or mps: the same tests for either. A test that cannot run is a failure, not a skip."""

import os
import sys

import pytest

NOT_ABOUT = {"cpu": "mps_only", "mps": "cpu_only"}
ABOUT_SOURCES = ("test_build.py", "test_cpu_emulated.py", "test_macos.py", "test_rig_*.py", "test_metal_kernels.py")  # run once, beside the CPU
FOR_LINUX = ("test_cpu_emulated.py", "test_macos.py", "test_rig_*.py", "test_metal_*.py")  # emulators, the rig and what it counts


def pytest_addoption(parser):
    parser.addoption("--device", choices=list(NOT_ABOUT), default="cpu", help="where the ops and models under test run")


def pytest_configure(config):
    for device, marker in NOT_ABOUT.items():
        config.addinivalue_line("markers", f"{marker}: not about the device {device}")
    prepare(config.getoption("device"))
    config.pluginmanager.import_plugin("tiny_models")  # not before: transformers asks torch for its devices when imported


def prepare(device):
    """Make the device there is, before anything asks torch for it: without a Mac, mps is the emulated one of tests/rig."""
    os.environ["INT4KV_DEVICE"] = device
    emulated = device == "mps" and sys.platform != "darwin"
    if emulated:
        from rig import device as rig_device

        rig_device.load()
    import torch

    import int4kv  # noqa: F401

    if emulated:
        rig_device.load_ops()
    torch.set_num_threads(1)  # the models are tiny and two test processes share two cores


def pytest_report_header(config):
    return f"device: {config.getoption('device')}"


def pytest_ignore_collect(collection_path, config):
    left_out = ABOUT_SOURCES * (config.getoption("device") != "cpu") + FOR_LINUX * (sys.platform != "linux")
    return True if any(collection_path.match(name) for name in left_out) else None


def pytest_collection_modifyitems(config, items):
    """Tests that are not about this device are no part of the run."""
    marker = NOT_ABOUT[config.getoption("device")]
    elsewhere = [item for item in items if item.get_closest_marker(marker)]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if not item.get_closest_marker(marker)]


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
