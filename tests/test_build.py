"""What is built fits what is imported: versions, CMake, the wheel's contents, the supported transformers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import int4kv
from int4kv.ops import check_build

ROOT = Path(__file__).parent.parent


def call(*arguments, **options):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_build_facts():
    facts = int4kv.ops.build_info()
    assert facts["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "cpu" in int4kv.ops.backends() and facts["openmp"] == (sys.platform == "linux")


def test_another_torch_minor_is_refused_in_one_sentence():
    check_build("2.13.0+cpu", "2.13.1")
    with pytest.raises(ImportError) as caught:
        check_build("2.13.0", "2.14.0")
    assert str(caught.value).startswith("int4kv was built against torch 2.13.0 but torch 2.14.0 is imported; rebuild it")


REFUSALS = [("sys.modules['int4kv._build'] = types.SimpleNamespace(TORCH_VERSION='2.99.0')", "int4kv was built against torch 2.99.0 but torch"),
            ("sys.modules['int4kv._build'] = None", "int4kv is not built; in its folder run: pip install")]


@pytest.mark.parametrize("setup, message", REFUSALS)
def test_the_refusal_comes_before_the_library_is_opened(setup, message):
    """One that does not fit may not even load, or crash."""
    code = f"import sys, types; {setup}; sys.modules['int4kv._C'] = None; import int4kv"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {message}")


def test_the_transformers_that_was_asked_for():
    """make test-other sets the version through PYTHONPATH; a silent mix-up would test nothing."""
    assert transformers.__version__ == os.environ.get("EXPECTED_TRANSFORMERS", transformers.__version__)


def test_cmake_alone_builds_it(tmp_path):
    """Configured, compiled, installed beside the Python files, imported and used."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert cmake, "cmake is missing: pip install cmake"
    build, site = tmp_path / "build", tmp_path / "site"
    call(cmake, "-S", ROOT, "-B", build, f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
         f"-DPython_EXECUTABLE={sys.executable}")
    call(cmake, "--build", build, "--parallel", "2")
    call(cmake, "--install", build, "--prefix", site)
    shutil.copytree(ROOT / "int4kv", site / "int4kv", ignore=shutil.ignore_patterns("_build.py", "*.so", "__pycache__"), dirs_exist_ok=True)
    code = "import int4kv, torch; print(int4kv.__file__, torch.ops.int4kv.attend)"
    assert str(site) in call(sys.executable, "-c", code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)})


def test_the_wheel_carries_the_models_and_runs(tmp_path):
    """pip install --no-build-isolation . into an empty folder, then the command line from there."""
    call(sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--target", tmp_path / "site", ROOT,
         env=os.environ | {"MAX_JOBS": "2"})
    run = [sys.executable, "-m", "int4kv.cli", "generate", "--model", "tiny-qwen2", "--prompt", "import", "--max-new-tokens", "3"]
    assert "3 tokens" in call(*run, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")})
    assert (tmp_path / "site" / "int4kv" / "models" / "heldout.txt").exists()
