"""INT4KV_CUDA=1 at build, on a machine without CUDA: what is missing is said, and the host code compiles against torch's headers.

pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "csrc" / "cuda"))
import cuda_headers  # noqa: E402
import embed_cuda  # noqa: E402

# Of all torch headers the one that a build without CUDA lacks.
CMAKE_MACROS = "#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n"


@pytest.fixture
def cuda_torch(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def toolkit(folder, names=cuda_headers.NEEDED, version=13000):
    """A toolkit's folder with these headers."""
    for name in names:
        path = folder / "include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#define CUDA_VERSION {version}\n")
    return folder


def test_a_torch_without_cuda_is_refused_at_build():
    code = "import runpy, sys, torch; torch.version.cuda = None; sys.argv = ['setup.py', 'build_ext']; runpy.run_path('setup.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"INT4KV_CUDA": "1"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"INT4KV_CUDA is set, but torch {torch.__version__} was built without CUDA; install one with CUDA")


def test_the_toolkit_is_taken_before_packages(cuda_torch, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_headers, "CUDA_HOME", str(toolkit(tmp_path)))
    assert cuda_headers.folders()[0] == str(tmp_path / "include")


def test_packages_do_without_a_toolkit(cuda_torch, monkeypatch):
    monkeypatch.setattr(cuda_headers, "CUDA_HOME", None)
    assert all("nvidia" in folder for folder in cuda_headers.folders())


def test_a_missing_header_is_named(cuda_torch, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_headers, "CUDA_HOME", str(toolkit(tmp_path, ("cuda.h", "cuda_runtime_api.h", "crt/host_defines.h"))))
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(SystemExit, match="nvrtc.h is nowhere: set CUDA_HOME to the toolkit of CUDA 13.0, or pip install nvidia-cuda-runtime, "):
        cuda_headers.folders()


def test_headers_of_another_major_version_are_refused(cuda_torch, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_headers, "CUDA_HOME", str(toolkit(tmp_path, version=12080)))
    with pytest.raises(SystemExit, match="is of CUDA 12.8; accepted is CUDA 13, that of torch"):
        cuda_headers.folders()


@pytest.mark.parametrize("source", sorted([*ROOT.glob("csrc/cuda/*.cpp"), *ROOT.glob("csrc/gpu/*.cpp")]),
                         ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_host_code_compiles(cuda_torch, tmp_path, source):
    macros = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    macros.parent.mkdir(parents=True)
    macros.write_text(CMAKE_MACROS)
    embed_cuda.embed_metal.write(tmp_path / "int4kv_cuda_source.h", embed_cuda.header(embed_cuda.source()))
    include = Path(torch.__file__).parent / "include"
    system = [include, include / "torch/csrc/api/include", *cuda_headers.folders()]
    done = subprocess.run(["c++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}",
                           *(part for folder in system for part in ("-isystem", str(folder))), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
