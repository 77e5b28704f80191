"""The emulated mps device: load() right after `import torch`, then torch.device("mps") works on Linux."""

import ctypes
import os
import sys

import torch

from . import build

_device = None


def load():
    """Builds the device when its sources changed and makes it torch's mps. Calling it again does nothing.

    Raises RuntimeError when somebody asked torch for mps before, which torch remembers as "there is none".
    """
    global _device
    if _device is None:
        _device = _open(build.build_device())
        _announce()


def load_ops(sources=None, **options):
    """Builds and registers the project's mps ops, or those of other sources, and returns the library's path.

    The ops' schemas must be registered, so `import int4kv` comes first.
    """
    load()
    path = build.build_ops(sources, **options)
    torch.ops.load_library(path)
    return path


def counters():
    """A dict of what happened since reset_counters(): dispatches, encoders, commits, waits, synchronisations,
    buffers_allocated, bytes_allocated, profiled_kernels; and live_bytes, held now."""
    names = _loaded().rig_counter_names().decode().split()
    values = (ctypes.c_uint64 * len(names))()
    _loaded().rig_counter_values(values)
    return dict(zip(names, values))


def reset_counters():
    _loaded().rig_reset_counters()


def kernels_dispatched():
    """Names of the kernels encoded since reset_counters(), in order."""
    return [_loaded().rig_dispatched_name(i).decode() for i in range(_loaded().rig_dispatched_count())]


def libraries():
    """What was compiled from Metal source: dicts of functions, language_version such as "3.1", and fast_math."""
    return [_library(i) for i in range(_loaded().rig_library_count())]


def core_count():
    """GPU cores the device claims to have: 8, or $RIG_CORES."""
    return _loaded().rig_core_count()


def _library(position):
    version, fast_math = ctypes.c_uint64(), ctypes.c_bool()
    functions = _loaded().rig_library(position, ctypes.byref(version), ctypes.byref(fast_math)).decode()
    language = f"{version.value >> 16}.{version.value & 0xFFFF}"
    return {"functions": functions.split(), "language_version": language, "fast_math": fast_math.value}


def _loaded():
    if _device is None:
        raise RuntimeError("rig.device.load() was not called")
    return _device


def _open(path):
    torch.ops.load_library(path)
    library = ctypes.CDLL(str(path))
    library.rig_is_heard.restype = ctypes.c_bool
    if not library.rig_is_heard():
        raise RuntimeError("torch was asked for mps before rig.device.load(); call it right after `import torch`")
    for name in ("rig_counter_names", "rig_dispatched_name", "rig_library"):
        getattr(library, name).restype = ctypes.c_char_p
    for name in ("rig_dispatched_count", "rig_library_count"):
        getattr(library, name).restype = ctypes.c_size_t
    library.rig_dispatched_name.argtypes = [ctypes.c_size_t]
    library.rig_library.argtypes = [ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_bool)]
    library.rig_set_toolchain(*(text.encode() for text in _metal_toolchain()))
    return library


def _metal_toolchain():
    msl = build.RIG / "msl"
    python = os.environ.get("INT4KV_RIG_PYTHON", sys.executable)
    tools = [path for path in msl.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return python, str(msl / "compile.py"), str(build.BUILD / "kernels"), build.content_hash(tools, [])


def _announce():
    """What a Linux torch has compiled in as "no mps", told otherwise."""
    torch._C._has_mps = True
    torch._C._mps_get_name = lambda: "Rig GPU (CPU)"
    torch._C._mps_get_core_count = core_count
    torch.backends.mps.is_available.cache_clear()
    torch.UntypedStorage.mps = _storage_to_mps


def _storage_to_mps(self):
    if self.device.type == "mps":
        return self
    whole = torch.empty(0, dtype=torch.uint8).set_(self, 0, (self.size(),))
    return whole.to("mps").untyped_storage()
