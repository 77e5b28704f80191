"""From sample text to an Int4KVConfig: what it says about keys, values and queries (observing), matrices fitted to that (learning), bits per
layer (budget), and the tensors and files they are kept in (tensors)."""

from .calibrate import calibrate
from .tensors import Calibration, LayerCalibration

__all__ = ["Calibration", "LayerCalibration", "calibrate"]
