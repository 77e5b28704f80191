"""One layer of the cache: packed codes, the ring of exact newest rows, the centre; written at once, read by attention.

                 end - window           end - recent   end
    codes   |........|=====================================|      every token, 4 bits
    recent                    |----------[=================]      the newest rows, exact; the query's own window in [ ]
                              recent.start
"""

import torch
from transformers.cache_utils import CacheLayerMixin

from . import ops
from .centre import EarlyRows
from .config import EXACT_BITS, ROLLBACK, Int4KVConfig, is_floating
from .ring import TokenRing
from .rotation import hadamard_signs

GROWTH = 256  # tokens that a growing layer starts with
FIRST_ROLLBACK = 128  # tokens of a first chunk that assisted decoding may take back


class PackedChunk:
    """What update() hands to attention instead of key and value tensors: the stored rows and the chunk itself."""

    __slots__ = ("layer", "k", "v", "codes", "recent", "start", "end", "recent_window", "fresh")

    def __init__(self, layer, k, v, codes, recent, start, end, recent_window, fresh):
        self.layer, self.k, self.v = layer, k, v
        self.codes, self.recent = codes, recent
        self.start, self.end, self.recent_window, self.fresh = start, end, recent_window, fresh

    @property
    def exact(self) -> bool:
        """True for the first chunk of a sequence in exact prefill: k and v are all there is to attend to."""
        return self.fresh and self.layer.config.prefill == "exact"


class Int4Layer(CacheLayerMixin):
    """A transformers cache layer. update() takes keys and values [batch, num_key_value_heads, tokens, head_dim]."""

    is_compileable = False
    is_croppable = True

    def __init__(self, config: Int4KVConfig, model_config=None, sliding_window: int | None = None, layer_idx: int = 0):
        super().__init__()
        self.config, self.model_config = config.for_layer(layer_idx), model_config
        self.sliding_window, self.layer_idx = sliding_window, layer_idx
        self.is_sliding = sliding_window is not None
        self.record_past = False  # transformers reads and clears it by this name
        self.expected_length, self.padding = None, None
        self._clear()

    def _clear(self):
        self.length, self.anchor = 0, 0
        self.codes: TokenRing | None = None
        self.recent: TokenRing | None = None
        self.centre: torch.Tensor | None = None
        self.early: EarlyRows | None = None
        self.is_initialized = False

    # ---- writing -------------------------------------------------------------------------------------------------

    def lazy_initialization(self, key_states, value_states=None):
        """Fix shape, dtype and device from the first keys."""
        self.batch_size, self.num_heads, _, self.head_dim = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.group_size = self.config.group_size or self.head_dim
        if self.head_dim % self.group_size:
            raise ValueError(f"group_size is {self.group_size}; accepted: divisors of head_dim, {self.head_dim}")
        self.signs = hadamard_signs(self.head_dim, self.device) if self.config.rotation else None
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        """Store a chunk. Returns a PackedChunk twice under int4kv attention, else dense keys and values."""
        self._check_chunk(key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        with torch.inference_mode(False), torch.no_grad():  # buffers outlive the mode they are made in
            chunk = self._store(key_states, value_states)
        if getattr(self.model_config, "_attn_implementation", "int4kv") == "int4kv":
            return chunk, chunk
        return self.dense(chunk)

    def _check_chunk(self, k, v):
        for name, x in (("key_states", k), ("value_states", v)):
            if x.dim() != 4 or not is_floating(x):
                raise ValueError(f"{name} has shape {list(x.shape)} and dtype {x.dtype}; accepted: float32, float16 or "
                                 "bfloat16 [batch, num_key_value_heads, tokens, head_dim]")
            if self.is_initialized and (x.shape[:2], x.shape[3]) != ((self.batch_size, self.num_heads), self.head_dim):
                raise ValueError(f"{name} has shape {list(x.shape)}; layer {self.layer_idx} of this cache holds "
                                 f"[{self.batch_size}, {self.num_heads}, tokens, {self.head_dim}]")
            if self.config.check_finite and not x.isfinite().all():
                raise ValueError(f"{name} of layer {self.layer_idx} has NaN or infinity; accepted: finite values")
        if k.shape != v.shape:
            raise ValueError(f"value_states has shape {list(v.shape)}; accepted: that of key_states, {list(k.shape)}")
        limit, needed = self.config.max_cache_len, self.length + k.shape[2]
        if limit is not None and needed > limit:
            raise ValueError(f"max_cache_len is {limit}; this chunk would make the sequence {needed} tokens long")

    def _store(self, k, v):
        tokens, begin, fresh = k.shape[2], self.length, self.length == 0
        end = begin + tokens
        self._reserve(tokens)
        self._settle_centre(k, v, begin, end)
        start = max(begin - self.sliding_window + 1, 0) if self.is_sliding else 0
        past_only = fresh and self.config.prefill == "exact"
        if past_only:  # attention will read k and v: store just what later queries can see
            keep = min(tokens, self.codes.capacity)
            codes, recent, first = self.codes, self.recent, end - keep
        else:
            codes, recent, first = self._room(self.codes, end - start, begin), self._recent_room(tokens, begin), begin
        self._write(k[:, :, first - begin :], v[:, :, first - begin :], codes, recent, first)
        self._keep_newest(codes, recent, begin, first, end)
        self.length = end
        return PackedChunk(self, k, v, codes, recent, start, end, self._exact_window(tokens), fresh)

    def _settle_centre(self, k, v, begin, end):
        if self.config.centre == "calibrated":
            self.centre = self.config.centres[self.layer_idx].to(k.device, torch.float32).expand(len(k), -1, -1)
        if self.config.centre != "prompt" or begin == end:
            return
        if self.centre is None:
            self.early = EarlyRows(k, self.config.centre_tokens, self.padding)
        if self.early is None:
            return
        self.early.add(k, v, begin)
        if self.centre is None or (end >= self.early.needed and not self.early.settled):
            self.centre, self.early.settled = self.early.mean(end), end >= self.early.needed
            first = max(begin - self.codes.capacity, 0)
            self._write(*self.early.rows(first, begin), self.codes, self.recent, first)
        if end >= self.early.needed + ROLLBACK:  # no crop can unsettle it any more
            self.early = None

    def _exact_window(self, tokens):
        """How many newest tokens a query reads exactly; in exact prefill a chunk reads all of itself so."""
        return self.config.recent + (tokens if self.config.prefill == "exact" and tokens > 1 else 0)

    def _write(self, k, v, codes, recent, position):
        rows = {} if recent is None else {"k_recent": recent.tensors[0], "v_recent": recent.tensors[1]}
        ops.quantize_kv(k, v, *codes.tensors, position, k_centre=self.centre, k_rotation=self.signs,
                        v_rotation=self.signs, **rows)

    # ---- room ----------------------------------------------------------------------------------------------------

    def _rollback(self, tokens):
        """Tokens that a later crop may take back: a constant few, or all since the last crop while recording."""
        if not self.record_past:
            return ROLLBACK
        needed = min(tokens, FIRST_ROLLBACK) if self.length == 0 else self.length + tokens - self.anchor
        return max(ROLLBACK, -(-needed // ROLLBACK) * ROLLBACK)

    def _reserve(self, tokens):
        end, rollback = self.length + tokens, self._rollback(tokens)
        if self.codes is None:
            self.codes = TokenRing(self._new_codes(self._capacity(end, rollback)))
            self.recent = TokenRing(self._new_recent(self.config.recent + rollback)) if self.config.recent else None
        needed = self.sliding_window - 1 + rollback if self.is_sliding else end
        if needed > self.codes.capacity:
            grown = needed if self.is_sliding else max(needed, 2 * self.codes.capacity)
            self.codes = self.codes.resized(min(grown, self.config.max_cache_len or grown), self.length)
        if self.recent is not None and self.config.recent + rollback > self.recent.capacity:
            self.recent = self.recent.resized(self.config.recent + rollback, self.length)

    def _capacity(self, end, rollback):
        if self.is_sliding:
            return self.sliding_window - 1 + rollback
        return self.config.max_cache_len or max(end, self.expected_length or GROWTH)

    def _new_codes(self, capacity):
        shape = (self.batch_size, self.num_heads, capacity)
        if self.config.bits == EXACT_BITS:
            width, groups, dtype = self.head_dim, 0, self.dtype
        else:
            width, groups, dtype = self.head_dim // 2, self.head_dim // self.group_size, torch.uint8
        codes = [torch.zeros(*shape, width, dtype=dtype, device=self.device) for _ in range(2)]
        scales = [torch.zeros(*shape, groups, dtype=torch.float16, device=self.device) for _ in range(2)]
        return [codes[0], scales[0], codes[1], scales[1]]

    def _new_recent(self, rows):
        dtype = self.dtype if self.config.bits == EXACT_BITS else torch.float16
        shape = (self.batch_size, self.num_heads, rows, self.head_dim)
        return [torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2)]

    def _room(self, ring, visible, begin):
        """The ring itself, or for a chunk that would overwrite what it still reads a transient larger copy."""
        return ring if visible <= ring.capacity else ring.resized(visible, begin)

    def _recent_room(self, tokens, begin):
        if self.recent is not None:
            return self._room(self.recent, self.config.recent + tokens, begin)
        exact = self.config.prefill == "exact" and self.config.bits != EXACT_BITS and tokens > 1
        return TokenRing(self._new_recent(tokens), start=begin) if exact else None

    def _keep_newest(self, codes, recent, begin, first, end):
        for mine, written in ((self.codes, codes), (self.recent, recent)):
            if written is None:
                continue
            written.wrote(begin, first, end)
            if mine is not None and written is not mine:
                mine.copy_from(written, max(written.start, end - mine.capacity), end)
                mine.wrote(begin, written.start, end)

    # ---- reading -------------------------------------------------------------------------------------------------

    def dense(self, chunk):
        """Keys and values of a chunk's visible tokens, [batch, heads, tokens, head_dim] in the model's dtype."""
        if chunk.exact:
            return chunk.k, chunk.v
        return self._dense_side(chunk, 0, self.centre, chunk.k), self._dense_side(chunk, 1, None, chunk.v)

    def _dense_side(self, chunk, side, centre, new):
        exact_new = self.config.prefill == "exact"
        stop = chunk.end - new.shape[2] if exact_new else chunk.end
        split = stop if chunk.recent is None else min(max(chunk.start, chunk.recent.start, stop - self.config.recent), stop)
        options = dict(centre=centre, rotation=self.signs, dtype=self.dtype)
        codes = chunk.codes.tensors[2 * side : 2 * side + 2]
        parts = [ops.dequantize(*codes, chunk.start, split, self.head_dim, **options)]
        if split < stop:
            rows = chunk.recent.tensors[side]
            parts.append(ops.dequantize(rows, rows[..., :0], split, stop, self.head_dim, **options))
        return torch.cat(parts + [new.to(self.dtype)] * exact_new, dim=2)

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
        end = max(self.length + tokens, 0) if tokens <= 0 else min(tokens, self.length)
        if self.codes is not None:
            first = max(end - self.sliding_window + 1, 0) if self.is_sliding else 0
            if self.codes.start > first:
                raise ValueError(
                    f"crop is {tokens}; layer {self.layer_idx} slides over {self.sliding_window} tokens and can take back "
                    f"{max(self.length - self.codes.start - self.sliding_window + 1, 0)} at most (activate_past_recording() allows more)")
            for ring in (self.codes, self.recent):
                if ring is not None:
                    ring.start = min(ring.start, end)
        if self.early is not None:
            self.early.settled = self.early.settled and end >= self.early.needed
        if end == 0:
            self.centre = self.early = None
        self.length = self.anchor = end

    def activate_past_recording(self):
        """Keep what any crop back to the last one needs: assisted decoding calls this."""
        self.record_past, self.anchor = True, self.length

    def reset(self):
        """Forget everything; buffers are released."""
        self._clear()

    def _map(self, change):
        for ring in (self.codes, self.recent):
            if ring is not None:
                ring.map(change)
        if self.centre is not None:
            self.centre = change(self.centre)
        if self.early is not None:
            self.early.map(change)
        if self.codes is not None:
            self.batch_size = self.codes.tensors[0].shape[0]

    def reorder_cache(self, beam_idx):
        self._map(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int):
        self._map(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices):
        self._map(lambda t: t[indices, ...])

    def offload(self):
        self._map(lambda t: t.to("cpu", non_blocking=True))

    def prefetch(self):
        if self.is_initialized:
            self._map(lambda t: t.to(self.device, non_blocking=True))

    # ---- accounting ----------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor this layer holds, by name."""
        held = {}
        if self.codes is not None:
            held |= zip(("k_codes", "k_scales", "v_codes", "v_scales"), self.codes.tensors)
        if self.recent is not None:
            held |= zip(("k_recent", "v_recent"), self.recent.tensors)
        if self.early is not None:
            held |= zip(("k_early", "v_early", "early_real"), (*self.early.ring.tensors, self.early.real))
        return held if self.centre is None else held | {"centre": self.centre}

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, ring and centre: whole buffers, full or not."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())
