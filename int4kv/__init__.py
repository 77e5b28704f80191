"""A 4-bit KV cache for PyTorch: torch.ops.int4kv.quantize and attend, and int4kv.patch(model) for Hugging Face models."""

from . import ops
from .attention import register as _register
from .cache import Int4Cache
from .calibration import Calibration, LayerCalibration, calibrate
from .config import Int4KVConfig
from .paging import Int4PagedCache, PagePool
from .patching import is_patched, patch, patched, unpatch
from .presets import preset
from .reporting import report

_register()
__version__ = "0.1.0"
__all__ = [
    "Calibration", "Int4Cache", "Int4KVConfig", "Int4PagedCache", "LayerCalibration", "PagePool", "calibrate", "is_patched", "ops", "patch",
    "patched", "preset", "report", "unpatch",
]
