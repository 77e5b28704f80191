"""A kernel of csrc/cuda's program as a shared library that rig.msl.host.Library runs."""
import sys
from pathlib import Path

from ..msl import toolchain
from .translate import translate

CSRC = Path(__file__).resolve().parents[3] / "csrc"
sys.path[:0] = [str(CSRC / "cuda")]
import embed_cuda  # noqa: E402

SHIM = Path(__file__).parent / "shim"


def compile_cuda(name: str, buffers: int, constants: tuple[int, ...], source: str | None = None, options: tuple[str, ...] = ()) -> Path:
    """The library of one kernel of the program, or of `source`, for its function constants; made once for as long as all of it stays as it is."""
    text = translate(source or embed_cuda.source(), name, buffers)
    flags = ["-std=c++17", f"-I{SHIM}", "-fno-exceptions", "-fno-rtti", *toolchain.kernel_flags(None, "off"), "-O1",
             f"-DINT4KV_WANTS_{name}=,", f"-DINT4KV_FUNCTION_CONSTANTS={','.join(map(str, constants))}", *options]
    executor = toolchain.executor_objects(None)  # named by their contents
    parts = [text, " ".join(flags), *(path.name for path in executor), *(file.read_bytes() for file in sorted(SHIM.iterdir()))]
    with toolchain.made_once(library := toolchain.cache_folder() / f"cuda-{toolchain.digest(parts)}.so") as output:
        if output:
            source = output.with_suffix(".cpp")
            source.write_text(text)
            toolchain.run([toolchain.CLANG, *flags, "-shared", "-Wl,-Bsymbolic", source, *executor, "-lm", "-o", output])
    return library
