"""int4kv.report(model): per layer what is stored, in how many bytes, against fp16, and what was skipped and why."""

from dataclasses import dataclass

import torch

from .cache import Int4Cache
from .config import ROLLBACK
from .patching import is_patched, last_cache
from .side import sides_of

FP16 = 2


@dataclass(frozen=True)
class LayerReport:
    """One layer: bytes held now, and what fp16 keys and values of the same capacity take."""

    layer: int
    bits: str
    group_size: int
    window: int | None
    tokens: int
    bytes: int
    fp16_bytes: int
    skipped: str = ""

    @property
    def ratio(self) -> float:
        return self.fp16_bytes / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class Report:
    """All layers of a cache; str() is a table."""

    layers: tuple
    shared_bytes: int
    note: str

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.layers) + self.shared_bytes

    @property
    def fp16_bytes(self) -> int:
        return sum(row.fp16_bytes for row in self.layers)

    @property
    def ratio(self) -> float:
        return self.fp16_bytes / self.bytes if self.bytes else 0.0

    def __str__(self) -> str:
        head = f"{'layer':>5} {'bits':>4} {'group':>5} {'window':>6} {'tokens':>7} {'bytes':>12} {'in fp16':>12} {'ratio':>6}  skipped"
        lines = [f"{r.layer:>5} {r.bits:>4} {r.group_size:>5} {r.window or '-':>6} {r.tokens:>7} {r.bytes:>12,} "
                 f"{r.fp16_bytes:>12,} {r.ratio:>6.2f}  {r.skipped}".rstrip() for r in self.layers]
        total = f"{'all':>5} {'':>4} {'':>5} {'':>6} {'':>7} {self.bytes:>12,} {self.fp16_bytes:>12,} {self.ratio:>6.2f}"
        return "\n".join([head, *lines, total, self.note])


def report(model_or_cache, tokens: int | None = None) -> Report:
    """What a patched model's latest cache, or a given Int4Cache, holds.

    tokens: instead of the bytes held now, those of full buffers after so many tokens at batch size 1.
    Raises ValueError for a model that is not patched and for tokens below 1.
    """
    cache = model_or_cache if isinstance(model_or_cache, Int4Cache) else _cache_of(model_or_cache)
    if tokens is not None and (not isinstance(tokens, int) or tokens < 1):
        raise ValueError(f"tokens is {tokens!r}; accepted: None, 1 or more")
    if tokens is not None:
        return Report(tuple(_planned(layer, cache, tokens) for layer in cache.layers), _rotations(cache),
                      f"full buffers after {tokens} tokens, batch size 1")
    shared = cache.rotation_bytes()
    return Report(tuple(_held(layer, cache) for layer in cache.layers), shared, f"held now, after {cache.get_seq_length()} tokens")


def _cache_of(model) -> Int4Cache:
    if not is_patched(model):
        raise ValueError(f"model is a {type(model).__name__} that is not patched; accepted: a patched model or an Int4Cache")
    return last_cache(model) or Int4Cache(model.config, model._int4kv.config)


def _row(layer, cache, tokens, nbytes, batch):
    heads, head_dim, _ = cache.signature
    config = layer.config
    visible = min(tokens, layer.sliding_window - 1) if layer.is_sliding else tokens
    bits = str(config.k_bits) if config.k_bits == config.v_bits else f"{config.k_bits}/{config.v_bits}"
    return LayerReport(layer.layer_idx, bits, config.group_size or head_dim, layer.sliding_window, tokens, nbytes,
                       2 * batch * heads * visible * head_dim * FP16, _reason(layer, cache))


def _reason(layer, cache) -> str:
    skipped = [i % len(cache.layers) for i in cache.config.skip_layers]
    return "named in skip_layers" if layer.layer_idx in skipped else ""


def _held(layer, cache):
    return _row(layer, cache, layer.length, layer.nbytes, getattr(layer, "batch_size", 1))


def _planned(layer, cache, tokens):
    heads = cache.signature[0]
    capacity = layer.sliding_window - 1 + ROLLBACK if layer.is_sliding else tokens
    return _row(layer, cache, tokens, heads * sum(_side_bytes(side, layer, capacity, tokens) for side in _sides(layer, cache)), 1)


def _sides(layer, cache):
    heads, head_dim, _ = cache.signature
    return sides_of(layer.config, layer.layer_idx, heads, head_dim, torch.device("cpu"))


def _side_bytes(side, layer, capacity, tokens) -> int:
    config = layer.config
    width, numbers, dtype = side.row_sizes(torch.float16)
    window = config.exact_window(tokens)
    exact = (window + ROLLBACK if window else 0) + (0 if layer.is_sliding else config.sinks)
    centre = 4 * side.head_dim if side.centre_kind else 0
    return capacity * (width * dtype.itemsize + FP16 * numbers) + exact * side.head_dim * FP16 + centre


def _rotations(cache) -> int:
    """Bytes of rotations, each once: those made by name are shared by all layers, calibrated ones belong to a layer."""
    used = {id(t): t for layer in cache.layers for side in _sides(layer, cache) for t in side.rotation if t is not None}
    return sum(t.numel() * t.element_size() for t in used.values())
