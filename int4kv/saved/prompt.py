"""int4kv.save_cache and load_cache: a prompt that was read once goes on in another process."""

import json

import torch

from ..cache import Int4Cache
from ..config import Int4KVConfig
from ..patching import devices_of, is_patched
from . import container, identity, layers


def save_cache(cache: Int4Cache, file, model, *, input_ids: torch.Tensor | None = None) -> None:
    """Write a cache to a safetensors file: the tokens held, packed as they are, and what they were made with.

    cache: an Int4Cache that holds at least one token. model: the one it was filled by, patched or not.
    input_ids: int [batch, tokens], the ids that the cache holds, or these and more (what generate returned); their hash is kept, so that
        load_cache can refuse another prompt. Nothing in the file tells what they were. Images beside them are not part of it.
    The file appears whole or not at all: a full disk is an OSError and leaves an older file as it was; a kill leaves that or the new one.
    Raises TypeError for another kind of cache, ValueError for an empty one, one of another model and ids that do not fit.
    """
    if not isinstance(cache, Int4Cache):
        raise TypeError(f"cache is a {type(cache).__name__}; accepted: Int4Cache")
    cache.check_model(model.config)
    tokens = {layer.length for layer in cache.layers}
    if len(tokens) != 1 or tokens == {0}:
        raise ValueError(f"cache holds {sorted(tokens)} tokens in its layers; accepted: 1 or more, in each as many")
    found = identity.describe(model, cache.config) | {"tokens": _tokens(input_ids, cache.batch_size, *tokens), "layers": []}
    tensors = {}
    for i, layer in enumerate(cache.layers):
        numbers, held = layers.describe(layer)
        found["layers"].append(numbers)
        tensors |= {f"layers.{i}.{name}": tensor for name, tensor in held.items()}
    container.write(file, json.dumps(found), tensors)


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


def load_cache(file, model, *, input_ids: torch.Tensor | None = None, config: Int4KVConfig | None = None, device=None) -> Int4Cache:
    """Read what save_cache wrote: a cache that goes on, bit for bit, as the saved one would have.

    model: the model that will continue. The same config and the same weights, or ValueError names what differs.
    input_ids: int [batch, tokens], the prompt to be continued. It must begin with the tokens that the file holds.
    config: the Int4KVConfig that the file must have been made with. None: that of the patched model; if it is not patched, the file's own.
    device: where the cache goes; None: each layer to where the model has it.
    Pass it to generate as past_key_values, with the whole prompt (at least one token longer) as input_ids.
    Raises FileNotFoundError, and ValueError, naming the file, when it is cut off or altered or does not fit.
    """
    text, tensors = container.read(file)
    found = json.loads(text)
    config = _config(file, found["config"], config or (model._int4kv.config if is_patched(model) else None))
    identity.check(file, found, identity.describe(model, config))
    _check_tokens(file, found["tokens"], input_ids, config)
    cache = Int4Cache(model.config, config)
    for i, (layer, where) in enumerate(zip(cache.layers, _devices(model, device, len(cache.layers)))):
        prefix = f"layers.{i}."
        held = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        with torch.inference_mode(False), torch.no_grad():  # buffers outlive the mode they are made in
            layers.restore(layer, found["layers"][i], held, where)
    return cache


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
