"""The attention and mask functions that transformers calls by the name "int4kv"."""

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.utils import logging

from . import ops
from .paging.cache import PagedRows
from .static import AppendedToken
from .storage import PackedChunk

NAME = "int4kv"
UNSUPPORTED = ("s_aux", "position_bias", "sinks")  # attention terms some models pass that the kernel does not know
TO_CHECK = frozenset((*UNSUPPORTED, "output_attentions"))
logger = logging.get_logger(__name__)


def int4kv_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, softcap=None, **kwargs):
    """Attention of query [batch, num_heads, queries, head_dim] over what the cache handed out.

    key: a PackedChunk from Int4Layer.update, PagedRows from a paged cache, or a tensor (training, use_cache=False, another cache): then it
    is SDPA. Returns ([batch, queries, num_heads, head_dim], None).
    """
    if not TO_CHECK.isdisjoint(kwargs):
        _check_options(module, kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if kwargs.get("cache") is not None:  # continuous batching
        return kwargs["cache"].attend(module.layer_idx, query, key, value, scaling, softcap), None
    read = READ.get(type(key))
    if read is not None and not key.exact:
        return read(query, key, attention_mask, scaling, softcap).transpose(1, 2), None
    if read is not None:
        key, value = key.k, key.v
    return _plain(module, query, key, value, attention_mask, dropout, scaling, softcap, **kwargs)


def _check_options(module, options):
    refused = [name for name in UNSUPPORTED if options.get(name) is not None]
    if refused:
        raise NotImplementedError(f"{refused[0]} was passed to int4kv attention by {type(module).__name__}; it is not supported")
    if options.get("output_attentions"):
        logger.warning_once("int4kv attention does not return attention weights; use attn_implementation='eager' for them")


def attend_chunk(query, chunk, attention_mask, scaling, softcap=None):
    """Attention over a chunk's stored rows, [batch, num_heads, queries, head_dim]. A mask is all there is to see by."""
    options, recent = chunk.options, chunk.recent
    if attention_mask is not None:
        options = options | dict(mask=_as_bool(attention_mask, chunk.end - chunk.start), causal=False, window=0)
    if softcap:
        options = options | dict(softcap=softcap)
    return ops.attend(query, *chunk.codes.tensors, chunk.start, chunk.end, scaling,
                      recent_start=0 if recent is None else recent.start, **options)


def attend_token(query, token, attention_mask, scaling, softcap=None):
    """The same for an AppendedToken; a mask covers all that the cache has room for."""
    options = token.options
    if attention_mask is not None:
        options = options | dict(mask=_as_bool(attention_mask, attention_mask.shape[-1]))
    if softcap:
        options = options | dict(softcap=softcap)
    return ops.attend_appended(query, *token.codes.tensors, token.length, scaling, **options)


def attend_rows(query, rows, attention_mask, scaling, softcap=None):
    """The same for PagedRows, which hold no padding: there is no mask to go by."""
    return rows.attend(query, scaling, softcap)


READ = {PackedChunk: attend_chunk, AppendedToken: attend_token, PagedRows: attend_rows}


def _as_bool(mask, keys):
    if mask is None:
        return None
    if mask.shape[-1] < keys:
        raise ValueError(f"attention_mask covers {mask.shape[-1]} keys; accepted: the {keys} that the cache holds for this chunk")
    mask = mask[..., -keys:]
    return mask if mask.dtype == torch.bool else mask >= 0


def _plain(module, query, key, value, attention_mask, dropout, scaling, softcap, **kwargs):
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    out = ops.attend_plain(query, key, value, scaling, softcap=softcap, mask=_as_bool(attention_mask, key.shape[2]),
                           causal=attention_mask is None)
    return out.transpose(1, 2), None


def int4kv_mask(*args, **kwargs):
    """The mask for one kind of layer: None, a padding mask [batch, 1, 1, keys] for single queries, else SDPA's bool mask.

    For single queries nothing is built and nothing is read back from the device, whatever the window.
    """
    queries = kwargs.get("q_length")
    if queries is None:  # before transformers 5.5
        queries = kwargs.get("cache_position", args[1] if len(args) > 1 else None).shape[0]
    keys, offset = kwargs["kv_length"], kwargs.get("kv_offset", 0)
    padding, window = kwargs.get("attention_mask"), kwargs.get("local_size")
    if isinstance(offset, torch.Tensor):  # an Int4StaticLayer's: attention finds its tokens, whatever their number
        if padding is None and not kwargs.get("use_vmap"):
            return None
        kwargs["kv_offset"] = 0
        return sdpa_mask(*args, **kwargs)
    single = queries == 1 and kwargs.get("allow_is_causal_skip", True) and (window is None or keys <= window)
    if single and padding is None:
        return None
    if single and padding.shape[-1] >= offset + keys:
        return padding[:, None, None, offset : offset + keys]
    return sdpa_mask(*args, **kwargs)


def register() -> None:
    """Make attn_implementation="int4kv" known to transformers."""
    AttentionInterface.register(NAME, int4kv_attention)
    AttentionMaskInterface.register(NAME, int4kv_mask)
