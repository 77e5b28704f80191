"""Between transformers' DynamicCache and Int4Cache: what was read with one goes on with the other."""

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from .centre import EarlyRows
from .layer import Int4Layer
from .storage import PackedChunk

ACCEPTED = "a DynamicCache of this model's layers, on the devices they run on"


def fill_from_dynamic(cache, dynamic: DynamicCache, attention_mask: torch.Tensor | None) -> None:
    """Store every token of a DynamicCache in an empty Int4Cache. Everything is checked before anything is stored."""
    if not isinstance(dynamic, DynamicCache) or getattr(dynamic, "offloading", False):
        kind = type(dynamic).__name__ + (", offloading" if isinstance(dynamic, DynamicCache) else "")
        raise TypeError(f"dynamic is a {kind}; accepted: {ACCEPTED}")
    held = [layer for layer in dynamic.layers if layer.get_seq_length() > 0]
    lengths = sorted({layer.get_seq_length() for layer in held})
    if held and (len(held) != len(cache.layers) or len(dynamic.layers) != len(held) or len(lengths) != 1):
        raise ValueError(f"dynamic holds {lengths} tokens in {len(held)} of {len(dynamic.layers)} layers; "
                         f"accepted: as many tokens in each of {len(cache.layers)}")
    for mine, its in zip(cache.layers, held):
        _check_layer(cache, mine, its)
    _check_mask(attention_mask, held)
    for mine, its in zip(cache.layers, held):
        with torch.inference_mode(False), torch.no_grad():  # buffers outlive the mode they are made in
            _fill(mine, its.keys, its.values, its.get_seq_length() - its.keys.shape[2], attention_mask)


def _check_layer(cache, mine: Int4Layer, its) -> None:
    where, (heads, head_dim, _) = f"layer {mine.layer_idx} of dynamic", cache.signature
    if type(its) not in (DynamicLayer, DynamicSlidingWindowLayer):
        raise TypeError(f"{where} is a {type(its).__name__}; accepted: DynamicLayer, DynamicSlidingWindowLayer")
    if (its.keys.shape[1], its.keys.shape[3]) != (heads, head_dim):
        raise ValueError(f"{where} holds keys {list(its.keys.shape)}; accepted: [batch, {heads}, tokens, {head_dim}], those of this model")
    limit, tokens = mine.config.max_cache_len, its.get_seq_length()
    if limit is not None and tokens > limit:
        raise ValueError(f"max_cache_len is {limit}; dynamic holds {tokens} tokens")
    needed = min(tokens, mine.sliding_window - 1) if mine.is_sliding else tokens
    if its.keys.shape[2] < needed:
        raise ValueError(f"{where} holds the newest {its.keys.shape[2]} of {tokens} tokens; accepted: {needed} or more, "
                         f"what this model's {'sliding' if mine.is_sliding else 'full'} attention reads")


def _check_mask(attention_mask, held) -> None:
    if attention_mask is None or not held:
        return
    accepted = [held[0].keys.shape[0], held[0].get_seq_length()]
    if list(attention_mask.shape) != accepted:
        raise ValueError(f"attention_mask has shape {list(attention_mask.shape)}; accepted: None, {accepted}")


def _fill(layer, keys, values, begin, attention_mask) -> None:
    """Tokens begin, begin + 1, ...; of a sliding layer those before are gone, and the first of these make the prompt's centre."""
    padding = None if attention_mask is None else attention_mask[:, begin:]
    layer.fix_shape(keys)
    layer.padding = padding
    if begin > 0:
        layer.length = begin
        layer.reserve(keys.shape[2])
        layer.codes.start = begin
        early = EarlyRows(keys, values, layer.config.centre_tokens, padding)
        early.add(keys, values, 0)
        layer.centres = [early.mean(which, keys.shape[2]) if side.centre_kind == "prompt" else None for which, side in enumerate(layer.sides)]
    layer.store(keys, values)


def to_dynamic(cache) -> DynamicCache:
    """Every token that the next query of each layer can see, dequantised in the model's dtype."""
    dynamic = DynamicCache(config=cache.layers[0].model_config)
    for mine, its in zip(cache.layers, dynamic.layers):
        if mine.length > 0:
            its.update(*mine.dense(_everything(mine)))
            if hasattr(its, "cumulative_length"):
                its.cumulative_length = mine.length
    return dynamic


def _everything(layer) -> PackedChunk:
    """What update() would hand to attention if no token came: all that is held and seen."""
    start = max(layer.length - layer.sliding_window + 1, 0) if layer.is_sliding else 0
    no_token = torch.empty(layer.batch_size, layer.num_heads, 0, layer.head_dim, dtype=layer.dtype, device=layer.device)
    return PackedChunk(layer, no_token, no_token, layer.codes, layer.recent, start, layer.length, {}, False)
