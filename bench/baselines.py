"""What int4kv is measured against: forms of torch's SDPA on a preallocated cache, and caches of transformers in a whole model.

Decoding needs no causal mask, so q [batch, heads, 1, head_dim] viewed as [batch, kv_heads, group, head_dim] is the same maths as
enable_gqa=True, in which the CPU's SDPA reads every key once per q head. The faster of the two is the bar.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import DynamicCache, DynamicLayer, QuantizedCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

import int4kv

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# ---- one call of attention -------------------------------------------------------------------------------------------


def sdpa_gqa(q, k, v):
    """q [batch, heads, 1, head_dim], k and v [batch, kv_heads, keys, head_dim]."""
    return scaled_dot_product_attention(q, k, v, enable_gqa=True)


def sdpa_grouped(q, k, v):
    """The same, every key read for all q heads of its group at once; returns [batch, kv_heads, group, head_dim]."""
    return scaled_dot_product_attention(q.reshape(len(q), k.shape[1], -1, q.shape[-1]), k, v)


def flash(form, q, k, v):
    """A form with torch's flash kernel, whatever torch would choose."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return form(q, k, v)


def sdpa_forms(device: str) -> dict:
    """Name -> function of q, k, v. On cuda torch chooses among kernels: its choice, and flash forced."""
    forms = {"sdpa": sdpa_gqa, "sdpa_grouped": sdpa_grouped}
    if device != "cuda":
        return forms
    return forms | {name.replace("sdpa", "sdpa_flash"): partial(flash, form) for name, form in forms.items()}


def sdpa_dtypes(device: str) -> dict:
    """fp32 only where it is a serious contender: not on cuda, where flash has no fp32."""
    return {name: dtype for name, dtype in DTYPES.items() if device != "cuda" or dtype.itemsize == 2}


def sdpa_contenders(q, k, v, clock) -> dict[str, list]:
    """'sdpa_fp32', 'sdpa_grouped_fp32', ... -> calls, on as many copies of the inputs as the clock cycles through."""
    device, found = q.device.type, {}
    for name, dtype in sdpa_dtypes(device).items():
        first = [x.to(dtype) for x in (q, k, v)]
        copies = clock.copies(sum(x.nbytes for x in first))
        inputs = [first] + [[x.clone() for x in first] for _ in range(copies - 1)]
        for form, function in sdpa_forms(device).items():
            found[f"{form}_{name}"] = [partial(function, *each) for each in inputs]
    return found


def gqa_names(names) -> list[str]:
    """Those that take enable_gqa=True, as a model's attention does."""
    return [name for name in names if name.startswith("sdpa_") and "grouped" not in name]


# ---- caches of a whole model -----------------------------------------------------------------------------------------


class PreallocatedLayer(DynamicLayer):
    """Keys and values in buffers made once; update hands out views of what is filled, so there is neither a copy nor a mask."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states, value_states):
        super().lazy_initialization(key_states, value_states)
        self.buffers = [x.new_zeros(*x.shape[:2], self.capacity, x.shape[3]) for x in (key_states, value_states)]

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, self.length = self.length, self.length + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states)):
            buffer[:, :, begin : self.length] = new
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return self.keys, self.values


def preallocated_cache(config, capacity: int) -> DynamicCache:
    """The strongest fp cache: full-attention layers preallocated; sliding ones, which are short, as transformers has them."""
    cache = DynamicCache(config=config)
    cache.layers = [PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def grouped_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """transformers' SDPA attention; one query without a mask is viewed as the rows of its group."""
    if query.shape[2] != 1 or attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    rows = query.reshape(len(query), key.shape[1], -1, query.shape[-1])
    out = scaled_dot_product_attention(rows, key, value, scale=scaling)
    return out.reshape(len(query), 1, -1, query.shape[-1]), None


AttentionInterface.register("sdpa_grouped", grouped_attention)
AttentionMaskInterface.register("sdpa_grouped", sdpa_mask)


@dataclass(frozen=True)
class CacheContender:
    """A cache and the attention it is read by. make: (model config, tokens that it will hold) -> cache."""

    attention: str
    make: object


CACHES = {
    "dynamic": CacheContender("sdpa", lambda config, capacity: DynamicCache(config=config)),
    "static": CacheContender("sdpa", lambda config, capacity: StaticCache(config=config, max_cache_len=capacity)),
    "preallocated": CacheContender("sdpa", preallocated_cache),
    "preallocated_grouped": CacheContender("sdpa_grouped", preallocated_cache),
    "quanto": CacheContender("sdpa", lambda config, capacity: QuantizedCache("quanto", config)),
    "hqq": CacheContender("sdpa", lambda config, capacity: QuantizedCache("hqq", config, axis_key=1, axis_value=1)),
    "int4kv": CacheContender("int4kv", lambda config, capacity: int4kv.Int4Cache(config).expect(capacity)),
    "int4kv_growing": CacheContender("int4kv", lambda config, capacity: int4kv.Int4Cache(config)),
}


def make_caches(names, config, capacity: int) -> tuple[dict, dict]:
    """({name: cache}, {name: why there is none}): a package that is not installed, or layers that transformers does not quantise."""
    made, missing = {}, {}
    for name in names:
        try:
            made[name] = CACHES[name].make(config, capacity)
        except ImportError:
            missing[name] = "not installed"
        except ValueError as error:
            missing[name] = str(error)
    return made, missing
