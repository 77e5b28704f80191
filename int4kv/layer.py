"""Int4Layer: PackedStorage behind the protocol of a transformers cache layer, in all its versions from 4.57 on."""

import torch
from transformers.cache_utils import CacheLayerMixin

from . import ops
from .batches import repeat, reorder, select
from .config import Int4KVConfig, is_floating
from .side import K, V
from .storage import PackedChunk, PackedStorage

ATTENTION = "_attn_implementation_internal"  # where transformers' configs keep what their property _attn_implementation says


class Int4Layer(PackedStorage, CacheLayerMixin):
    """update() takes keys and values [batch, num_key_value_heads, tokens, head_dim], float32, float16 or bfloat16."""

    is_compileable = False
    is_croppable = True

    def __init__(self, config: Int4KVConfig, model_config=None, sliding_window: int | None = None, layer_idx: int = 0,
                 num_layers: int = 1):
        CacheLayerMixin.__init__(self)
        PackedStorage.__init__(self, config, sliding_window, layer_idx, num_layers)
        self.model_config = model_config
        self._attention_name = ATTENTION if hasattr(model_config, ATTENTION) else "_attn_implementation"

    def lazy_initialization(self, key_states, value_states=None):
        self.fix_shape(key_states)

    def update(self, key_states, value_states, *args, **kwargs):
        """Store a chunk. Returns a PackedChunk twice under int4kv attention, else dense keys and values."""
        if self._is_next(key_states, value_states):
            chunk = self.store_next(key_states, value_states)
        else:
            chunk = self._store_checked(key_states, value_states)
        return (chunk, chunk) if self._attention() == "int4kv" else self.dense(chunk)

    def _is_next(self, k, v):
        """Whether this is the token that self.next was made for: its shape and dtype have been checked before."""
        step = self.next
        return (step is not None and self.length < step.until and k.shape == step.shape == v.shape
                and k.dtype is step.dtype is v.dtype and not torch.is_grad_enabled())

    def _attention(self):
        """The attention function that the model uses now. A config's own attribute lookup would take 3 us, as long as all the rest."""
        return "int4kv" if self.model_config is None else object.__getattribute__(self.model_config, self._attention_name)

    def _store_checked(self, k, v):
        self._check_chunk(k, v)
        if not self.is_initialized:
            self.fix_shape(k)
        with torch.inference_mode(False), torch.no_grad():  # buffers outlive the mode they are made in
            return self.store(k, v)

    def _check_chunk(self, k, v):
        for name, x in (("key_states", k), ("value_states", v)):
            self._check_states(name, x)
        if k.shape != v.shape:
            raise ValueError(f"value_states has shape {list(v.shape)}; accepted: that of key_states, {list(k.shape)}")
        limit, needed = self.config.max_cache_len, self.length + k.shape[2]
        if limit is not None and needed > limit:
            raise ValueError(f"max_cache_len is {limit}; this chunk would make the sequence {needed} tokens long")

    def _check_states(self, name, x):
        if x.dim() != 4 or not is_floating(x):
            raise ValueError(f"{name} has shape {list(x.shape)} and dtype {x.dtype}; accepted: float32, float16 or "
                             "bfloat16 [batch, num_key_value_heads, tokens, head_dim]")
        if self.is_initialized and (x.shape[:2], x.shape[3]) != ((self.batch_size, self.num_heads), self.head_dim):
            raise ValueError(f"{name} has shape {list(x.shape)}; layer {self.layer_idx} of this cache holds "
                             f"[{self.batch_size}, {self.num_heads}, tokens, {self.head_dim}]")
        if self.config.check_finite and not x.isfinite().all():
            raise ValueError(f"{name} of layer {self.layer_idx} has NaN or infinity; accepted: finite values")

    # ---- reading -------------------------------------------------------------------------------------------------

    def dense(self, chunk: PackedChunk):
        """Keys and values of a chunk's visible tokens, [batch, heads, tokens, head_dim] in the model's dtype."""
        if chunk.exact:
            return chunk.k, chunk.v
        return self._dense_side(chunk, K, chunk.k), self._dense_side(chunk, V, chunk.v)

    def _dense_side(self, chunk, which, new):
        exact_new = self.config.prefill == "exact"
        stop = chunk.end - new.shape[2] if exact_new else chunk.end
        sunk = min(max(chunk.start, self.sink.capacity), stop) if self.sink is not None else chunk.start
        split = stop if chunk.recent is None else min(max(sunk, chunk.recent.start, stop - self.config.exact_window(chunk.end)), stop)
        pieces = [(None if self.sink is None else self.sink.tensors[which], chunk.start, sunk),
                  (None, sunk, split), (None if chunk.recent is None else chunk.recent.tensors[which], split, stop)]
        parts = [self._dequantized(chunk, which, *piece) for piece in pieces if piece[1] < piece[2]]
        return torch.cat(parts + [new.to(self.dtype)] * exact_new, dim=2)

    def _dequantized(self, chunk, which, rows, begin, end):
        """Tokens begin .. end of a side, from exact rows or, where there are none, from its codes."""
        stored = chunk.codes.tensors[2 * which : 2 * which + 2] if rows is None else (rows, rows[..., :0].half())
        return ops.dequantize(*stored, begin, end, self.head_dim, centre=self.centres[which], codebook=self.config.codebook,
                              rotation=self.sides[which].rotation.read, dtype=self.dtype)

    def get_mask_sizes(self, query_length):
        """(key length, key offset) of the next mask; transformers before 5.5 passes cache_position, later a length."""
        queries = query_length if isinstance(query_length, int) else query_length.shape[0]
        if not self.is_sliding:
            return self.length + queries, 0
        offset = max(self.length - self.sliding_window + 1, 0)
        return self.length - offset + queries, offset

    def get_seq_length(self, *args):
        return self.length

    def get_max_length(self):
        return self.sliding_window if self.is_sliding else (self.config.max_cache_len or -1)

    get_max_cache_shape = get_max_length  # its name before transformers 5.16

    # ---- editing -------------------------------------------------------------------------------------------------

    def crop(self, tokens: int):
        """Take tokens back: negative = how many (as transformers 5.16+ means it), positive = the length to keep."""
        self.cut(max(self.length + tokens, 0) if tokens <= 0 else min(tokens, self.length))

    def activate_past_recording(self):
        """Keep what crops back to the last one need, up to 256 tokens: assisted decoding calls this."""
        self.record_past, self.anchor, self.next = True, self.length, None

    def reset(self):
        """Forget everything; buffers are released."""
        self.clear()

    def reorder_cache(self, beam_idx):
        """Sequence i of the batch becomes what sequence beam_idx[i] was. Copies where they differ, in place."""
        reorder(self, beam_idx)

    def batch_repeat_interleave(self, repeats: int):
        """Every sequence of the batch `repeats` times, one behind the other."""
        repeat(self, repeats)

    def batch_select_indices(self, indices):
        """Keep these sequences of the batch, by index or by a bool mask [batch]. Copies the tokens held, not whole buffers."""
        select(self, indices)

    def offload(self):
        self.map(lambda t: t.to("cpu", non_blocking=t.is_cuda))  # elsewhere the copy might be read before it is there

    def prefetch(self):
        if self.is_initialized:
            self.map(lambda t: t.to(self.device, non_blocking=self.device.type == "cuda"))
