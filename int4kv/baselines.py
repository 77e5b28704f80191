"""What int4kv is measured against: 4 bits as they are usually taken, without centre, rotation or exact newest rows."""

import torch
from transformers.cache_utils import DynamicCache


def abs_max_int4(x: torch.Tensor) -> torch.Tensor:
    """x rounded to 15 levels per vector, scale = max|x| / 7, and back: [..., head_dim] in x's dtype."""
    scale = x.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 7
    return ((x.float() / scale).round() * scale).to(x.dtype)


class PlainInt4Cache(DynamicCache):
    """A DynamicCache that rounds every key and value to plain abs-max int4 on the way in (the error, not the savings)."""

    def update(self, key_states, value_states, *args, **kwargs):
        return super().update(abs_max_int4(key_states), abs_max_int4(value_states), *args, **kwargs)
