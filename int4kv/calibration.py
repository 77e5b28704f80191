"""Key centres from sample text: centre="calibrated" instead of the mean of each prompt's first keys."""

import torch
from transformers.cache_utils import DynamicCache

from .config import text_config
from .patching import is_patched


@torch.no_grad()
def calibrate(model, input_ids: torch.Tensor) -> tuple:
    """Mean key of every layer and head over sample text: a tuple of float32 [num_key_value_heads, head_dim].

    input_ids: integers [batch, tokens] without padding. The model is left as it is and must not be patched.
    Use: int4kv.patch(model, centre="calibrated", centres=int4kv.calibrate(model, input_ids)).
    """
    if is_patched(model):
        raise ValueError("model is patched; accepted: one that is not, so that keys are measured as they are")
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise ValueError(f"input_ids has shape {list(input_ids.shape)}; accepted: [batch, tokens], not empty")
    cache = DynamicCache(config=text_config(model.config))
    model(input_ids.to(model.device), past_key_values=cache, use_cache=True)
    return tuple(layer.keys.float().mean(dim=(0, 2)) for layer in cache.layers)
