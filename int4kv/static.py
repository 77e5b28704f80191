"""Int4StaticCache: fixed capacity, and decode steps that torch.compile turns into one graph for every token.

    the prompt, later chunks, the few tokens until a short prompt's centre is settled    eager, as Int4Layer does it
    every other token                                                                    append_kv and attend_appended

Their lengths lie in tensors on the CPU, so that a graph holds no position and no device is waited for.
"""

import torch

from . import ops
from .cache import Int4Cache
from .config import Int4KVConfig, make_config
from .layer import Int4Layer
from .naming import CACHE


class AppendedToken:
    """What update() hands to attention for a token whose position only a tensor knows; see PackedChunk."""

    __slots__ = ("codes", "length", "options", "exact")

    def __init__(self, codes, length, options):
        self.codes, self.length, self.options, self.exact = codes, length, options, False


class Int4StaticLayer(Int4Layer):
    """An Int4Layer of config.max_cache_len tokens. While `next` is there, a token is stored without Python knowing where."""

    is_compileable = True
    is_croppable = False
    croppable = 0

    def __init__(self, *args, **kwargs):
        self.position = torch.zeros((), dtype=torch.int64)
        super().__init__(*args, **kwargs)

    @property
    def length(self) -> int:
        return int(self.position)

    @length.setter
    def length(self, tokens):
        self.position.fill_(tokens)

    def _is_next(self, k, v):
        step = self.next
        return (step is not None and k.shape == step.shape == v.shape and k.dtype is step.dtype is v.dtype
                and not torch.is_grad_enabled() and self._attention() == "int4kv")

    def _attention(self):
        known = self.model_config is not None and torch.compiler.is_compiling()
        return self.model_config._attn_implementation if known else super()._attention()  # a compiler does not follow the shorter way

    def store_next(self, k, v) -> AppendedToken:
        ops.append_kv(k, v, *self.codes.tensors, self.position, self.config.max_cache_len, **self.next.write)
        return AppendedToken(self.codes, self.position, self.next.read)

    def _store_checked(self, k, v):
        if torch.compiler.is_compiling():
            raise RuntimeError(f"{CACHE} takes {k.shape[2]} tokens of a prompt or of an unsettled centre; accepted in a compiled "
                               "graph: single tokens after those, under torch.no_grad(). Run the prompt with the model as it is")
        self._catch_up()
        return super()._store_checked(k, v)

    def _catch_up(self):
        """Tell the rings of appended tokens: those moved the tensor only."""
        for ring in (self.codes, self.recent):
            if ring is not None:
                ring.advance(self.length)

    def reorder_cache(self, beam_idx):
        self._catch_up()
        super().reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int):
        self._catch_up()
        super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices):
        self._catch_up()
        super().batch_select_indices(indices)

    def get_mask_sizes(self, query_length):
        """(key length, key offset) of the next mask. A single token's has the capacity's length, whatever is held, and its offset is a tensor."""
        queries = query_length if isinstance(query_length, int) else query_length.shape[0]
        if queries == 1 and self.next is not None and self._attention() == "int4kv":
            return self.config.max_cache_len, torch.zeros((), dtype=torch.int64)
        return super().get_mask_sizes(queries)

    def get_seq_length(self, *args):
        return self.position if torch.compiler.is_compiling() else self.length

    def map(self, change):
        settled = self.next is not None
        super().map(change)
        if settled:
            self._expect_next()

    def crop(self, tokens: int):
        raise NotImplementedError("crop is not there in an Int4StaticCache; accepted: an Int4Cache")


class Int4StaticCache(Int4Cache):
    """An Int4Cache of fixed capacity that a compiled decode step can write to and read from: one graph for every token.

    max_cache_len: tokens of the longest sequence; one more raises ValueError and changes nothing. The rest is Int4Cache's, but for
    crop() and check_finite, which need to know positions. reset() makes it empty again for the same compiled graph.
    """

    layer_class = Int4StaticLayer

    def __init__(self, model_config, max_cache_len: int, config: Int4KVConfig | None = None, **overrides):
        config = make_config(config, **overrides, max_cache_len=max_cache_len)
        if max_cache_len is None or config.check_finite:
            name, value, accepted = ("check_finite", True, False) if config.check_finite else ("max_cache_len", None, "1 or more")
            raise ValueError(f"{name} is {value}; accepted by Int4StaticCache: {accepted}")
        super().__init__(model_config, config)

    def is_settled(self, tokens: int) -> bool:
        """Whether the next chunk of so many tokens changes nothing but positions: what a compiled graph can do."""
        return tokens == 1 and all(layer.next is not None for layer in self.layers)

    def activate_past_recording(self) -> None:
        raise NotImplementedError("activate_past_recording is not there in an Int4StaticCache; accepted: an Int4Cache")
