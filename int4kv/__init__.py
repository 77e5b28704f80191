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
from .saved import load_cache, save_cache
from .static import Int4StaticCache

_register()
__version__ = "0.1.0"
__all__ = [
    "Calibration", "Int4Cache", "Int4KVConfig", "Int4PagedCache", "Int4StaticCache", "LayerCalibration", "PagePool", "calibrate", "is_patched",
    "load_cache", "ops", "patch", "patched", "preset", "report", "save_cache", "unpatch",
]
