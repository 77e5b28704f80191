"""Finds CUDA's headers: in the toolkit (CUDA_HOME), or in packages, most of which come with a torch for CUDA. As a program it prints the folders."""

import re
import sys
from pathlib import Path

import torch
from torch.utils.cpp_extension import CUDA_HOME

NEEDED = ("cuda.h", "cuda_runtime_api.h", "nvrtc.h", "crt/host_defines.h")
PACKAGED = ("nvidia/cu*/include", "nvidia/cuda_runtime/include", "nvidia/cuda_nvrtc/include", "nvidia/cuda_crt/include")


def folders() -> list[str]:
    """Folders that together hold every header that csrc/cuda includes. SystemExit says what is missing."""
    if torch.version.cuda is None:
        raise SystemExit(f"INT4KV_CUDA is set, but torch {torch.__version__} was built without CUDA; install one with CUDA, or unset INT4KV_CUDA")
    found = [folder for folder in candidates() if any((folder / name).exists() for name in NEEDED)]
    for name in NEEDED:
        if not any((folder / name).exists() for folder in found):
            raise SystemExit(f"INT4KV_CUDA is set, but {name} is nowhere: set CUDA_HOME to the toolkit of CUDA {torch.version.cuda}, "
                             f"or pip install nvidia-cuda-runtime, nvidia-cuda-nvrtc and nvidia-cuda-crt of that version; looked in {', '.join(map(str, candidates())) or 'no folder'}")
    check_version(next(folder / "cuda.h" for folder in found if (folder / "cuda.h").exists()))
    return [str(folder) for folder in found]


def candidates() -> list[Path]:
    """The toolkit first: its headers are complete, and of one version."""
    toolkit = [Path(CUDA_HOME) / "include"] if CUDA_HOME else []
    return toolkit + [folder for place in sys.path for pattern in PACKAGED for folder in sorted(Path(place or ".").glob(pattern))]


def check_version(header: Path) -> None:
    """Libraries are opened by the major version of these headers: it must be that of the CUDA that torch brings."""
    version = int(re.search(r"^#define CUDA_VERSION (\d+)", header.read_text(), re.MULTILINE)[1])
    if str(version // 1000) != torch.version.cuda.split(".")[0]:
        raise SystemExit(f"{header} is of CUDA {version // 1000}.{version % 1000 // 10}; accepted is CUDA {torch.version.cuda.split('.')[0]}, "
                         f"that of torch {torch.__version__}: set CUDA_HOME to such a toolkit")


if __name__ == "__main__":
    print(";".join(folders()), end="")
