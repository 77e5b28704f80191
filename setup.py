"""Builds int4kv._C: the ops and the module that carries build facts. Everything else is in pyproject.toml."""
import os
import subprocess
import sys
from glob import glob

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

HERE = os.path.dirname(os.path.abspath(__file__))
GENERATED = os.path.join(HERE, "build", "generated")
MAC = sys.platform == "darwin"

# a * b + c is two roundings, as format.h says. -Wno-psabi: vectors never cross a call. OpenMP is what at::parallel_for is made of on Linux.
COMPILE = ["-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wno-psabi"]
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
FRAMEWORKS = ["-framework", "Foundation", "-framework", "Metal"] if MAC else []


def sources():
    folders = ("csrc/*.cpp", "csrc/cpu/*.cpp") + (("csrc/mps/*.mm",) if MAC else ())
    return sorted(path for pattern in folders for path in glob(pattern, root_dir=HERE))


def write_build_facts():
    """int4kv/_build.py says which torch the library fits, readable before the library is opened."""
    with open(os.path.join(HERE, "int4kv", "_build.py"), "w") as file:
        file.write(f'TORCH_VERSION = "{torch.__version__}"\n')


def embed_metal_kernels():
    header = os.path.join(GENERATED, "int4kv_metal_source.h")
    subprocess.run([sys.executable, os.path.join(HERE, "csrc", "mps", "embed_metal.py"), header], check=True)


write_build_facts()
if MAC:
    embed_metal_kernels()
setup(
    ext_modules=[
        CppExtension(
            "int4kv._C",
            sources(),
            include_dirs=[GENERATED] if MAC else [],
            extra_compile_args={"cxx": COMPILE + OPENMP},
            extra_link_args=OPENMP + FRAMEWORKS,
            depends=[p for kind in ("h", "metal") for p in glob(f"csrc/**/*.{kind}", recursive=True, root_dir=HERE)],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
