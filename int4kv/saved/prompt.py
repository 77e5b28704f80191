"""int4kv.save_cache and load_cache: a prompt that was read once goes on in another process."""

import json

import torch

from ..cache import Int4Cache, check_same_signature
from ..config import Int4KVConfig
from ..paging import Int4PagedCache, PagePool
from ..patching import devices_of, is_patched
from . import container, identity, layers, pages


def save_cache(cache: Int4Cache | Int4PagedCache, file, model, *, input_ids: torch.Tensor | None = None, row: int | None = None) -> None:
    """Write a cache to a safetensors file: the tokens held, packed as they are, and what they were made with.

    cache: an Int4Cache, or an Int4PagedCache of which one row is saved, with at least one token. model: the one it was filled by, patched
        or not. What it was saved from does not show: either kind of cache goes on from the file.
    input_ids: int [batch, tokens], the ids that the cache holds, or these and more (what generate returned); their hash is kept, so that
        load_cache can refuse another prompt. Nothing in the file tells what they were. Images beside them are not part of it.
        Of a row of pages [1, tokens], without padding.
    row: which one of an Int4PagedCache; None where it has just one.
    The file appears whole or not at all: a full disk is an OSError and leaves an older file as it was; a kill leaves that or the new one.
    Raises TypeError for another kind of cache, ValueError for an empty one, one of another model, and a row and ids that do not fit.
    """
    if not isinstance(cache, (Int4Cache, Int4PagedCache)):
        raise TypeError(f"cache is a {type(cache).__name__}; accepted: Int4Cache, Int4PagedCache")
    cache.check_model(model.config)
    config, batch, count, held = _of_pages(cache, row, model.dtype) if isinstance(cache, Int4PagedCache) else _of_all(cache, row)
    found = identity.describe(model, config) | {"tokens": _tokens(input_ids, batch, count), "layers": [numbers for numbers, _ in held]}
    tensors = {f"layers.{i}.{name}": tensor for i, (_, parts) in enumerate(held) for name, tensor in parts.items()}
    container.write(file, json.dumps(found), tensors)


def _of_all(cache, row):
    """(config, sequences, tokens, what describe() gives for each layer)."""
    if row is not None:
        raise ValueError(f"row is {row!r}; accepted for an Int4Cache, which is saved whole: None")
    tokens = {layer.length for layer in cache.layers}
    if len(tokens) != 1 or tokens == {0}:
        raise ValueError(f"cache holds {sorted(tokens)} tokens in its layers; accepted: 1 or more, in each as many")
    return cache.config, cache.batch_size, *tokens, [layers.describe(layer) for layer in cache.layers]


def _of_pages(cache, row, dtype):
    """The same of one row."""
    rows = len(cache.sequences)
    if row is None and rows == 1:
        row = 0
    if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < rows:
        raise ValueError(f"row is {row!r}; accepted: one of the cache's {rows} rows, counted from 0")
    sequence = cache.sequences[row]
    if sequence.length == 0 or not cache.is_between_chunks:
        where = "" if cache.is_between_chunks else " in some of its layers"
        raise ValueError(f"row {row} of cache holds {sequence.length} tokens{where}; accepted: 1 or more, in each as many")
    return cache.pool.config, 1, sequence.length, [pages.describe(cache.pool, sequence, i, dtype) for i in range(len(cache.layers))]


def _tokens(input_ids, batch, count) -> dict:
    if input_ids is None:
        return {"batch": batch, "count": count, "sha256": None}
    ids = _checked_ids(input_ids)
    if len(ids) != batch or ids.shape[1] < count:
        raise ValueError(f"input_ids has shape {list(ids.shape)}; accepted: [{batch}, {count} or more], the tokens that the cache holds")
    return {"batch": batch, "count": count, "sha256": identity.tokens_digest(ids[:, :count])}


def _checked_ids(input_ids):
    ids = torch.as_tensor(input_ids)
    if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"input_ids has shape {list(ids.shape)} and dtype {ids.dtype}; accepted: integers [batch, tokens]")
    return ids


def load_cache(file, model, *, input_ids: torch.Tensor | None = None, config: Int4KVConfig | None = None, device=None,
               pool: PagePool | None = None) -> Int4Cache | Int4PagedCache:
    """Read what save_cache wrote: a cache that goes on, bit for bit, as the saved one would have.

    model: the model that will continue. The same config and the same weights, or ValueError names what differs.
    input_ids: int [batch, tokens], the prompt to be continued. It must begin with the tokens that the file holds.
    config: the Int4KVConfig that the file must have been made with. None: that of the patched model; if it is not patched, the file's own.
    device: where the cache goes; None: each layer to where the model has it.
    pool: gives an Int4PagedCache with one row, a new sequence of this PagePool, which then says config and device. A file of one sequence
        without padding; its centre becomes that of an unused pool, and must be that of a pool in use.
    Pass it to generate as cache, past_key_values before transformers 5.24, with the whole prompt (at least one token longer) as
    input_ids.
    Raises FileNotFoundError, ValueError, naming the file, when it is cut off or altered or does not fit, and OutOfPages or OutOfRings.
    """
    expected = config or (model._int4kv.config if is_patched(model) else None)
    if pool is not None:
        expected = _config_of_pool(pool, model, config, device)
    text, tensors = container.read(file)
    found = json.loads(text)
    config = _config(file, found["config"], expected)
    identity.check(file, found, identity.describe(model, config))
    _check_tokens(file, found["tokens"], input_ids, config)
    held = [_of_layer(tensors, i) for i in range(len(found["layers"]))]
    if pool is not None:
        return Int4PagedCache.of(pool, [pages.restore(pool, found["layers"], held)])
    cache = Int4Cache(model.config, config)
    for i, (layer, where) in enumerate(zip(cache.layers, _devices(model, device, len(cache.layers)))):
        with torch.inference_mode(False), torch.no_grad():  # buffers outlive the mode they are made in
            layers.restore(layer, found["layers"][i], held[i], where)
    return cache


def _config_of_pool(pool, model, config, device):
    for name, value in (("config", config), ("device", device)):
        if value is not None:
            raise ValueError(f"{name} is {value!r}; accepted with a pool, which has its own: None")
    check_same_signature(pool.signature, model.config)
    return pool.config


def _of_layer(tensors, i):
    prefix = f"layers.{i}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _config(file, saved, expected) -> Int4KVConfig:
    if expected is not None:
        return expected
    if saved["calibration"] is not None:
        raise ValueError(f"{file} was saved with a calibration, which it does not hold; accepted as config: the Int4KVConfig that has it, "
                         "or None with a model that is patched with it")
    layer_bits = {int(layer): tuple(bits) for layer, bits in saved["layer_bits"].items()}
    return Int4KVConfig(**saved | {"layer_bits": layer_bits, "calibration": None})


def _check_tokens(file, saved, input_ids, config) -> None:
    batch, count = saved["batch"], saved["count"]
    if config.max_cache_len is not None and count > config.max_cache_len:
        raise ValueError(f"{file} holds {count} tokens; accepted: {config.max_cache_len} at most, the config's max_cache_len")
    if input_ids is None:
        return
    ids = _checked_ids(input_ids)
    if saved["sha256"] is None:
        raise ValueError(f"{file} was saved without input_ids; accepted: input_ids None")
    if len(ids) != batch or ids.shape[1] < count:
        raise ValueError(f"input_ids has shape {list(ids.shape)}; accepted: [{batch}, {count} or more], beginning with the tokens in {file}")
    if identity.tokens_digest(ids[:, :count]) != saved["sha256"]:
        raise ValueError(f"{file} holds other tokens than the first {count} of input_ids; accepted: a prompt that begins with its tokens")


def _devices(model, device, count) -> list[torch.device]:
    """Where each layer's keys are made."""
    used = devices_of(model)
    if device is not None or len(used) == 1:
        return [torch.device(device) if device is not None else next(iter(used))] * count
    found = [next(layer.parameters()).device for layer in model.get_decoder().layers]
    if any(where.type == "meta" for where in found):
        raise ValueError("device is None and the model has layers on the disk; accepted: the device that they run on")
    return found
