"""Builds int4kv._C: the ops and the module that carries build facts. Everything else is in pyproject.toml.

INT4KV_CUDA=1 adds the ops on CUDA. No nvcc is needed: the kernels are compiled at run time.
"""
import os
import subprocess
import sys
from glob import glob

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "csrc", "cuda"))
import cuda_headers  # noqa: E402

GENERATED = os.path.join(HERE, "build", "generated")
MAC = sys.platform == "darwin"
CUDA = os.environ.get("INT4KV_CUDA", "0") not in ("", "0")

# a * b + c is two roundings, as format.h says. -Wno-psabi: vectors never cross a call. OpenMP is what at::parallel_for is made of on Linux.
COMPILE = ["-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wno-psabi"]
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
FRAMEWORKS = ["-framework", "Foundation", "-framework", "Metal"] if MAC else []


class Build(BuildExtension):
    """Leaves its object files to the next build, editable or a wheel's, in which ninja compiles what changed."""

    def finalize_options(self):
        self.build_temp = self.build_temp or os.path.join(HERE, "build", f"{sys.implementation.cache_tag}-torch-{torch.__version__}")
        super().finalize_options()


def sources():
    folders = ["csrc/*.cpp", "csrc/cpu/*.cpp"] + ["csrc/gpu/*.cpp"] * (MAC or CUDA) + ["csrc/mps/*.mm"] * MAC + ["csrc/cuda/*.cpp"] * CUDA
    return sorted(path for pattern in folders for path in glob(pattern, root_dir=HERE))


def write_build_facts():
    """int4kv/_build.py says which torch the library fits, readable before the library is opened."""
    with open(os.path.join(HERE, "int4kv", "_build.py"), "w") as file:
        file.write(f'TORCH_VERSION = "{torch.__version__}"\n')


def embed_kernels(script, header):
    subprocess.run([sys.executable, os.path.join(HERE, "csrc", script), os.path.join(GENERATED, header)], check=True)


include_folders = cuda_headers.folders() if CUDA else []
write_build_facts()
if MAC:
    embed_kernels("gpu/embed_metal.py", "int4kv_metal_source.h")
if CUDA:
    embed_kernels("cuda/embed_cuda.py", "int4kv_cuda_source.h")
setup(
    ext_modules=[
        CppExtension(
            "int4kv._C",
            sources(),
            include_dirs=[GENERATED] * (MAC or CUDA) + include_folders,
            extra_compile_args={"cxx": COMPILE + OPENMP},
            extra_link_args=OPENMP + FRAMEWORKS,
            libraries=["c10_cuda"] * CUDA,
            depends=[p for kind in ("h", "metal") for p in glob(f"csrc/**/*.{kind}", recursive=True, root_dir=HERE)],
        )
    ],
    cmdclass={"build_ext": Build},
)
