"""The kernels as CUDA: the shipped code hands each of them to NVRTC, which needs no GPU. pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"""

import os
import re
import struct
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "csrc" / "cuda"))
import cuda_headers  # noqa: E402
import embed_cuda  # noqa: E402

ENTRIES = ("quantize", "dequantize", "attend_simd", "attend_matrix", "merge")
QUANTIZE, DEQUANTIZE, SIMD, MATRIX, MERGE = range(5)
CODEBOOKS = UNIFORM, LLOYD, ABSMAX, ASYMMETRIC = range(4)
PLAIN = 16
MERGE_128 = (MERGE, 128, 0, 0, 0, 0, 0, 0)
WITHOUT_CONSTANTS = [(entry, size, 0, 0, 0, 0, 0, 0) for entry, size in product((QUANTIZE, DEQUANTIZE, MERGE), range(32, 257, 32))]
SYMMETRIC = [(bits, bits, book) for bits, book in product((3, 4, 5, 8), (UNIFORM, LLOYD, ABSMAX))] + [(5, 4, LLOYD), (8, 4, LLOYD)]
OTHERS = [(bits, bits, ASYMMETRIC) for bits in (3, 4, 5, 8)] + [(PLAIN, 4, LLOYD), (4, PLAIN, LLOYD), (PLAIN, PLAIN, LLOYD)]
MERGE_DECODE = [(MERGE, size, 0, 0, 0, 0, 1, 0) for size in range(32, 257, 32)]
ATTENTION = [(SIMD, rows, *recipe, 0, 0, 0) for rows, recipe in product((1, 2), SYMMETRIC + OTHERS)]
ATTENTION += [(MATRIX, 128, *recipe, 0, 0, 0) for recipe in SYMMETRIC] + [(MATRIX, head_dim, 4, 4, LLOYD, 0, 0, 0) for head_dim in (64, 256)]
ATTENTION += [(MATRIX, head_dim, 4, 4, LLOYD, 0, 1, 0) for head_dim in (64, 128, 256)] + [(MATRIX, 128, 5, 4, LLOYD, 0, 1, 0), (MATRIX, 128, 8, 8, UNIFORM, 0, 1, 0)]
DEFAULT = [kernel for kernel in ATTENTION if kernel[2:6] == (4, 4, LLOYD, 0)]
PAGED = [(*kernel[:5], 1, *kernel[6:]) for kernel in DEFAULT]
PAGED += [(QUANTIZE, 128, 0, 0, 0, 1, 0, 0), (SIMD, 1, PLAIN, PLAIN, LLOYD, 1, 0, 0), (MATRIX, 128, 8, 4, LLOYD, 1, 0, 0)]
LARGE = [(MATRIX, 128, 4, 4, LLOYD, 0, 0, 1), (MATRIX, 256, 4, 4, LLOYD, 1, 1, 1), (MATRIX, 128, 8, 4, LLOYD, 1, 0, 1), (MATRIX, 64, 8, 8, UNIFORM, 0, 1, 1),
         (MATRIX, 128, 3, 5, LLOYD, 0, 1, 1), (MERGE, 256, 0, 0, 0, 0, 0, 1)]


def build_program(folder):
    library = Path(torch.__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_headers.torch.version, "cuda", "13.0")
        headers = cuda_headers.folders()
    embed_cuda.embed_metal.write(folder / "int4kv_cuda_source.h", embed_cuda.header(embed_cuda.source()))
    names = "cuda/compile.cpp", "cuda/disk_cache.cpp", "cuda/driver.cpp", "gpu/kernel.cpp"
    sources = [ROOT / "tests/cuda/compile_kernels.cpp", *(ROOT / "csrc" / name for name in names)]
    include = [part for place in (library / "include", *headers) for part in ("-isystem", str(place))]
    subprocess.run(["c++", "-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{folder}", *include, *map(str, sources),
                    "-o", str(folder / "compile_kernels"), f"-L{library / 'lib'}", "-lc10", f"-Wl,-rpath,{library / 'lib'}", "-ldl"], check=True)
    (folder / "cubins").mkdir()


@pytest.fixture(scope="session")
def program(made_once):
    """compile_kernels.cpp, beside it the folder cubins of what it compiled in this run."""
    return made_once("cuda", build_program) / "compile_kernels"


def nvrtc_folder():
    found = [path for place in sys.path for path in Path(place or ".").glob("nvidia/cu*/lib/libnvrtc.so.*")]
    assert found, "NVRTC is missing: pip install nvidia-cuda-nvrtc"
    return found[0].parent


def compiled(program, folder, capability, kernels, cache=None):
    """(exit code, standard error, the cubins' paths). What another test had compiled is not compiled again, unless `cache` is another folder."""
    words = [str(word) for kernel in kernels for word in kernel]
    done = subprocess.run([str(program), str(folder), str(capability), *words], capture_output=True, text=True,
                          env=os.environ | {"LD_LIBRARY_PATH": str(nvrtc_folder()), "INT4KV_CUDA_CACHE": str(cache or program.with_name("cubins"))})
    return done.returncode, done.stderr, sorted(folder.glob("*.cubin"))


def name_of(kernel):
    return f"{ENTRIES[kernel[0]]}_{kernel[1]}"


def section(cubin, name):
    """The bytes of an ELF section."""
    table, size, count, names = struct.unpack_from("<Q10xHHH", cubin, 40)
    headers = [struct.unpack_from("<I20xQQ", cubin, table + i * size) for i in range(count)]
    text = headers[names][1]
    (place,) = [header[1:] for header in headers if cubin[text + header[0]:].startswith(name + b"\0")]
    return cubin[place[0]:sum(place)]


def local_bytes(cubin):
    """Of a thread's local memory, which is what the compiler keeps in no register: the largest EIATTR_MIN_STACK_SIZE of the functions."""
    info, at, found = section(cubin, b".nv.info"), 0, []
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        found += [struct.unpack_from("<4xI", info, at + 4)[0]] if attribute == 0x12 else []
        at += 4 + (size if form == 4 else 0)
    return max(found)


def test_the_list_of_kernels_is_that_of_the_sources():
    instances = re.findall(r"^INT4KV_ENTRY\((\w+),", embed_cuda.source(), re.MULTILINE)
    assert {name_of(kernel) for kernel in WITHOUT_CONSTANTS + ATTENTION} == set(instances)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernels", [WITHOUT_CONSTANTS + MERGE_DECODE, DEFAULT, PAGED], ids=["without codes", "the default's attention", "paged"])
def test_the_kernels_of_the_default_compile(program, tmp_path, capability, kernels):
    code, words, cubins = compiled(program, tmp_path, capability, kernels)
    assert code == 0, words
    assert len(cubins) == len(kernels) and all(name_of(kernel).encode() in b"".join(c.read_bytes() for c in cubins) for kernel in kernels)


@pytest.mark.parametrize("codebook", CODEBOOKS, ids=["uniform", "lloyd", "absmax", "asymmetric"])
def test_every_width_and_codebook_compiles(program, tmp_path, codebook):
    kernels = [kernel for kernel in ATTENTION if kernel[4] == codebook]
    code, words, cubins = compiled(program, tmp_path, 90, kernels)
    assert code == 0, words
    assert len(cubins) == len(kernels)


@pytest.mark.parametrize("capability, kernels", [(80, LARGE[1:4]), (90, LARGE)], ids=["80", "90"])
def test_large_blocks_compile(program, tmp_path, capability, kernels):
    code, words, cubins = compiled(program, tmp_path, capability, kernels)
    assert code == 0, words
    assert len(cubins) == len(kernels)


@pytest.mark.parametrize("large", [0, 1], ids=["", "large"])
def test_a_decode_step_keeps_everything_in_registers(program, tmp_path, large):
    kernels = [MERGE_DECODE[1], MERGE_DECODE[3], MERGE_DECODE[7], *((MATRIX, head_dim, 4, 4, LLOYD, 0, 1) for head_dim in (64, 128, 256)[: 2 + large])]
    kernels = [(*kernel[:7], large) for kernel in kernels]
    cubins = compiled(program, tmp_path, 90, kernels)[2]
    assert [local_bytes(path.read_bytes()) for path in cubins] == [0] * len(kernels)


def test_a_refusal_names_the_kernel_and_has_the_compilers_words(program, tmp_path):
    code, words, _ = compiled(program, tmp_path, 999, [(SIMD, 2, 4, 4, LLOYD, 0, 0, 0)])
    assert code == 1 and "int4kv: the CUDA kernel attend_simd_2 (K 4, V 4, lloyd) cannot be compiled for sm_999: NVRTC_ERROR_INVALID_OPTION" in words


def test_an_older_gpu_is_refused(program, tmp_path):
    code, words, _ = compiled(program, tmp_path, 75, [MERGE_128])
    assert code == 1 and "int4kv: the GPU has compute capability 7.5; accepted are 8.0 and newer" in words


def test_a_kernel_is_compiled_once_for_all_processes(program, tmp_path):
    """What is kept is what was compiled, and a file without content counts as none."""
    first, second, cache = (tmp_path / name for name in ("first", "second", "cache"))
    first.mkdir(), second.mkdir()
    (fresh,) = compiled(program, first, 90, [MERGE_128], cache)[2]
    (kept,) = cache.iterdir()
    assert kept.read_bytes() == fresh.read_bytes()
    kept.write_bytes(b"from the cache")
    assert compiled(program, second, 90, [MERGE_128], cache)[2][0].read_bytes() == b"from the cache"
    kept.write_bytes(b"")
    assert compiled(program, second, 90, [MERGE_128], cache)[2][0].read_bytes() == fresh.read_bytes()
    assert [path.name for path in cache.iterdir()] == [kept.name]


def test_a_folder_that_cannot_be_written_is_as_good_as_none(program, tmp_path):
    (tmp_path / "file").write_text("")
    assert compiled(program, tmp_path, 90, [MERGE_128], tmp_path / "file")[0] == 0


def test_the_program_is_one_ascii_text_that_needs_no_file():
    source = embed_cuda.source()
    assert source.isascii() and '#include "' not in source and "#include <metal" not in source
    assert source.startswith("// Metal's language and library in CUDA C++")
