"""Builds int4kv._C: the ops and the module that carries build facts. Everything else is in pyproject.toml."""
import os
import sys
from glob import glob

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

HERE = os.path.dirname(os.path.abspath(__file__))

# -Wno-psabi: vectors never cross a call. OpenMP is what at::parallel_for is made of on Linux.
COMPILE = ["-O3", "-g0", "-fvisibility=hidden", "-Wno-psabi"]
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []


def sources():
    found = glob("csrc/*.cpp", root_dir=HERE) + glob("csrc/cpu/*.cpp", root_dir=HERE)
    return sorted(found)


def write_build_facts():
    """int4kv/_build.py says which torch the library fits, readable before the library is opened."""
    with open(os.path.join(HERE, "int4kv", "_build.py"), "w") as file:
        file.write(f'TORCH_VERSION = "{torch.__version__}"\n')


write_build_facts()
setup(
    ext_modules=[
        CppExtension(
            "int4kv._C",
            sources(),
            extra_compile_args={"cxx": COMPILE + OPENMP},
            extra_link_args=OPENMP,
            depends=glob("csrc/**/*.h", recursive=True, root_dir=HERE),
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
