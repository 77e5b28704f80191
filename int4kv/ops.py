"""Loads the compiled ops and refuses a build that does not fit the torch it meets."""

import os

import torch


def minor(version: str) -> str:
    """'2.13.0+cpu' -> '2.13'."""
    return ".".join(version.split("+")[0].split(".")[:2])


def check_build(built: str, imported: str) -> None:
    """Raise ImportError when the extension was built against another torch minor: its C++ interface differs."""
    if minor(built) != minor(imported):
        raise ImportError(
            f"int4kv was built against torch {built} but torch {imported} is imported; "
            "rebuild it: pip install --no-build-isolation --force-reinstall --no-deps int4kv"
        )


def check_cpu_choice(wanted: str | None, accepted: tuple[str, ...]) -> None:
    """Raise ImportError when the environment asks for CPU kernels that this processor cannot run."""
    if wanted and wanted not in accepted:
        raise ImportError(f"INT4KV_CPU is {wanted!r}; accepted on this processor: {', '.join(accepted)}, or nothing for the best")


def build_info() -> dict:
    """Facts of the compiled library: torch, compiler, format_version, openmp."""
    return _C.build_info()


def cpu_kernels() -> tuple[str, ...]:
    """The CPU kernels that this processor can run, best first: of "avx512", "avx2", "neon" and "portable".

    The best are used unless the environment variable INT4KV_CPU names others: an unknown name is refused at import. All write the same
    codes and scales.
    """
    return _C.cpu_kernels()


def use_cpu_kernels(name: str) -> str:
    """Run the CPU ops with these kernels from now on. Returns the name of those used so far.

    Raises ValueError for a name that is not among cpu_kernels().
    """
    return _C.use_cpu_kernels(name)


def backends() -> tuple[str, ...]:
    """The device types that the ops have kernels for, best first."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return tuple(key.lower() for key in ("MPS", "CUDA", "CPU") if has("int4kv::attend", key))


def check_device(name: str, device: torch.device) -> None:
    """Raise ValueError for a device that this build has no kernels for. `name`: what is there."""
    if device.type not in (*backends(), "meta"):
        hint = "; for CUDA, build it with INT4KV_CUDA=1 pip install --no-build-isolation ." if device.type == "cuda" else ""
        raise ValueError(f"{name} is on {device}; this build of int4kv has kernels for {', '.join(backends())}{hint}")


def prepare(
    device: torch.device | str, head_dims: list[int], k_bits: int = 4, v_bits: int = 4, codebook: str = "lloyd", paged: bool = False
) -> list[str]:
    """Build a GPU's kernels before they are first needed: those of the paged ops, or of the others.

    Returns where they come from, then every kernel built so far; on the CPU [].
    """
    return torch.ops.int4kv.prepare(torch.empty(0, device=device), head_dims, k_bits, v_bits, codebook, paged)


def _load():
    try:
        from ._build import TORCH_VERSION
    except ModuleNotFoundError:
        raise ImportError("int4kv is not built; in its folder run: pip install --no-build-isolation .") from None
    # Before the library is opened: one that does not fit may not even load.
    check_build(TORCH_VERSION, torch.__version__)
    from . import _C

    check_cpu_choice(os.environ.get("INT4KV_CPU"), _C.cpu_kernels())
    return _C


_C = _load()
quantize = torch.ops.int4kv.quantize
dequantize = torch.ops.int4kv.dequantize
quantize_paged = torch.ops.int4kv.quantize_paged
attend_paged = torch.ops.int4kv.attend_paged
append_kv = torch.ops.int4kv.append_kv
attend_appended = torch.ops.int4kv.attend_appended

quantize_kv, attend = _C.quantize_kv, _C.attend  # the same ops, called in less time: csrc/calls.cpp


@torch.compiler.substitute_in_graph(quantize_kv, skip_signature_check=True)
def _quantize_kv_in_graph(*args, **options):
    return torch.ops.int4kv.quantize_kv(*args, **options)


@torch.compiler.substitute_in_graph(attend, skip_signature_check=True)
def _attend_in_graph(*args, **options):
    return torch.ops.int4kv.attend(*args, **options)


def attend_plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, **options) -> torch.Tensor:
    """attend over keys and values that are not packed, [batch, num_key_value_heads, tokens, head_dim]: with a softcap, which SDPA has not."""
    none = k.new_empty(*k.shape[:3], 0, dtype=torch.float16)
    return attend(q, k, none, v, none, 0, k.shape[2], scale, **options)
