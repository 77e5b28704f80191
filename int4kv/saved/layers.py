"""What a layer holds as numbers and tensors, and a layer made of them that goes on as if it had never been away."""

import torch

from ..centre import EarlyRows
from ..layer import Int4Layer
from ..ring import TokenRing
from ..storage import GROWTH

RINGS = {"codes": ("k_codes", "k_scales", "v_codes", "v_scales"), "recent": ("k_recent", "v_recent"), "sink": ("k_sink", "v_sink"),
         "early": ("k_early", "v_early")}
DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}


def describe(layer: Int4Layer) -> tuple[dict, dict]:
    """(numbers for JSON, tensors on the CPU) of a layer that holds tokens. Of the buffers only those tokens, in their order."""
    numbers = {"length": layer.length, "shape": [layer.batch_size, layer.num_heads, layer.head_dim], "dtype": str(layer.dtype), "rings": {}}
    tensors = {f"{'kv'[which]}_centre": centre for which, centre in enumerate(layer.centres) if centre is not None}
    for name, ring in _rings(layer).items():
        end = min(layer.length, ring.start + ring.capacity)
        numbers["rings"][name] = {"start": ring.start, "capacity": ring.capacity}
        tensors |= zip(RINGS[name], ring.tokens(ring.start, end))
    if layer.early is not None:
        numbers["early"] = {"needed": layer.early.needed, "settled": layer.early.settled}
        tensors["early_real"] = layer.early.real
    return numbers, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def restore(layer: Int4Layer, numbers: dict, tensors: dict, device: torch.device) -> None:
    """Fill an empty layer with what describe() gave. Its buffers have room for some tokens more."""
    batch, heads, head_dim = numbers["shape"]
    layer.fix_shape(torch.empty(batch, heads, 0, head_dim, dtype=DTYPES[numbers["dtype"]], device=device))
    layer.length = layer.anchor = numbers["length"]
    layer.expected_length = layer.length + GROWTH
    layer.reserve(0)
    layer.early = _early(layer, tensors, **numbers["early"]) if "early" in numbers else None
    layer.centres = [tensors[name].to(device) if name in tensors else None for name in ("k_centre", "v_centre")]
    for name, held in numbers["rings"].items():
        _fill(layer, name, [tensors[part] for part in RINGS[name]], **held)


def _fill(layer, name, tensors, start, capacity):
    ring = _rings(layer)[name]
    if capacity > ring.capacity and (name != "codes" or layer.is_sliding):  # it recorded past states
        ring.resize(capacity, 0)
    for part, mine, its in zip(RINGS[name], ring.tensors, tensors):
        accepted = [*mine.shape[:2], min(layer.length, start + ring.capacity) - start, mine.shape[3]]
        check_rows(part, layer.layer_idx, its, mine.dtype, accepted)
    ring.put(tensors, start)


def check_rows(name: str, layer_idx: int, found: torch.Tensor, dtype: torch.dtype, shape: list[int]) -> None:
    """Raise ValueError, naming the tensor, when it is of another dtype or shape."""
    if list(found.shape) != shape or found.dtype != dtype:
        raise ValueError(f"{name} of layer {layer_idx} is {found.dtype} {list(found.shape)}; accepted: {dtype} {shape}")


def _early(layer, tensors, needed, settled) -> EarlyRows:
    no_rows = [tensors[name][:, :, :0].to(layer.device) for name in RINGS["early"]]
    early = EarlyRows(*no_rows, layer.config.centre_tokens, padding=None)
    early.needed, early.settled, early.real = needed, settled, tensors["early_real"].to(layer.device)
    early.ring.resize(needed, 0)
    return early


def _rings(layer) -> dict[str, TokenRing]:
    found = {"codes": layer.codes, "recent": layer.recent, "sink": layer.sink, "early": layer.early and layer.early.ring}
    return {name: ring for name, ring in found.items() if ring is not None}
