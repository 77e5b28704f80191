"""K or V of one layer: what is done to its rows, and how wide they are stored."""

import torch

from .config import EXACT_BITS, Int4KVConfig, pair
from .rotation import Rotation, make_rotation

K, V = 0, 1


class Side:
    """config: that of one layer (Int4KVConfig.for_layer). which: K or V. calibrated: a LayerCalibration or None."""

    def __init__(self, config: Int4KVConfig, which: int, heads: int, head_dim: int, device, calibrated=None):
        self.heads, self.head_dim, self.device = heads, head_dim, device
        self.bits, self.codebook = pair(config.bits)[which], config.codebook
        self.packed = self.bits != EXACT_BITS
        self.group_size = config.group_size or head_dim
        if head_dim % self.group_size:
            raise ValueError(f"group_size is {self.group_size}; accepted: divisors of head_dim, {head_dim}")
        self.centre_kind = (config.centre, config.v_centre)[which] if self.packed else None
        self._found = {name: getattr(calibrated, f"{'kv'[which]}_{name}", None) for name in ("centre", "lambda", "rotation")}
        self.rotation = self._make_rotation(config, pair(config.rotation)[which]) if self.packed else Rotation(None, None)

    def _make_rotation(self, config, name):
        block = config.hadamard_block if name in ("hadamard", "sylvester") else None
        largest = self.head_dim & -self.head_dim
        return make_rotation(
            name, self.head_dim, self.device, block=block if block and block < largest else None,
            matrix=self._needed("rotation") if name == "learned" else None,
            channel_lambda=self._needed("lambda") if config.channel_lambda else None)

    def _needed(self, name):
        if self._found[name] is None:
            raise ValueError(f"calibration has no {name} here; accepted: one from int4kv.calibrate that was asked for it")
        return self._found[name]

    def calibrated_centre(self, batch: int) -> torch.Tensor:
        """float32 [batch, heads, head_dim]."""
        return self._needed("centre").to(self.device, torch.float32).expand(batch, -1, -1)

    def row_sizes(self, dtype) -> tuple[int, int, torch.dtype]:
        """Elements of a row's codes, numbers of its scales, and the codes' dtype."""
        if not self.packed:
            return self.head_dim, 0, dtype
        each = 2 if self.codebook == "asymmetric" else 1
        return self.head_dim * self.bits // 8, each * self.head_dim // self.group_size, torch.uint8


def sides_of(config: Int4KVConfig, layer_idx: int, heads: int, head_dim: int, device, held: slice | None = None) -> list[Side]:
    """K's and V's of one layer, with what the calibration says of it, or of the heads held."""
    calibrated = config.calibration.layers[layer_idx].of_heads(held) if config.calibration is not None else None
    return [Side(config, which, heads, head_dim, device, calibrated) for which in (K, V)]
