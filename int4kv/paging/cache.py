"""Int4PagedCache: a transformers Cache whose rows are sequences of a PagePool."""

import weakref

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from ..batches import check_repeats, rows_of
from ..cache import check_same_signature
from .layer import PagedChunk
from .pool import PagePool, Sequence


class PagedRows:
    """A PagedChunk between the padded rows that a model works on, [batch, heads, tokens, head_dim], and tokens one after the other."""

    def __init__(self, chunk: PagedChunk, k, v, real: torch.Tensor | None):
        self.chunk, self.k, self.v, self.real = chunk, k, v, real
        self.exact = chunk.step.fresh  # k and v are all there is to attend to

    def attend(self, query: torch.Tensor, scaling: float, softcap: float | None) -> torch.Tensor:
        """query and result [batch, num_heads, tokens, head_dim]; padding gives 0."""
        tokens = _tokens(query, self.real)
        found = self.chunk.attend(tokens, scaling, softcap)
        batch, heads, queries, head_dim = query.shape
        if self.real is not None:
            whole = found.new_zeros(batch * queries, heads, head_dim)
            whole[self.real] = found
            found = whole
        return found.view(batch, queries, heads, head_dim).transpose(1, 2)


def _tokens(x, real):
    """[batch, heads, tokens, head_dim] -> [tokens of all rows, heads, head_dim], of those that are real."""
    flat = x.transpose(1, 2).flatten(0, 1)
    return flat if real is None else flat[real]


class PagedCacheLayer(CacheLayerMixin):
    """What transformers asks a layer; the cache has all there is."""

    is_compileable = False
    is_croppable = True

    def __init__(self, cache: "Int4PagedCache", layer_idx: int, sliding_window: int | None):
        super().__init__()
        self.cache, self.layer_idx, self.sliding_window = weakref.proxy(cache), layer_idx, sliding_window
        self.is_sliding, self.is_initialized = sliding_window is not None, True

    def lazy_initialization(self, key_states, value_states=None):
        pass

    def update(self, key_states, value_states, *args, **kwargs):
        """Store a chunk; int4kv attention takes it from here. Twice the same PagedRows."""
        rows = self.cache.store(key_states, value_states, self.layer_idx)
        return rows, rows

    def get_seq_length(self, *args):
        return self.cache.columns

    def get_mask_sizes(self, query_length):
        """(key length, key offset) of the mask of a first chunk; later ones need none."""
        queries = query_length if isinstance(query_length, int) else query_length.shape[0]
        offset = max(self.cache.columns - self.sliding_window + 1, 0) if self.is_sliding else 0
        return self.cache.columns - offset + queries, offset

    def get_max_length(self):
        return self.sliding_window if self.is_sliding else -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.16


class Int4PagedCache(Cache):
    """The rows of a batch, each a sequence of a pool with a length of its own; padding takes no room. Passed to the model as any cache.

    Rows move, fork, leave and join by their block tables: no page is copied, except a shared last one when it is written on. The model
    must use int4kv attention (int4kv.patch). A cache gives its sequences back with free(), or when it is deleted.
    """

    def __init__(self, pool: PagePool):
        self.pool, self.sequences = pool, []
        self.columns = 0  # tokens and padding per row, as the model counts them
        self._step, self._real, self._next_layer, self._padding = None, None, 0, None
        windows = pool.signature[2]
        super().__init__(layers=[PagedCacheLayer(self, i, window) for i, window in enumerate(windows)])

    @classmethod
    def of(cls, pool: PagePool, sequences: list[Sequence]) -> "Int4PagedCache":
        """A cache of these sequences of the pool, which are its own from now on."""
        cache = cls(pool)
        cache.sequences, cache.columns = sequences, max((sequence.length for sequence in sequences), default=0)
        return cache

    # ---- writing -------------------------------------------------------------------------------------------------

    def note_padding(self, attention_mask: torch.Tensor | None) -> None:
        """The 2-dimensional attention mask of the next chunk: padding, on either side, is not stored."""
        self._padding = attention_mask if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2 else None

    def store(self, k: torch.Tensor, v: torch.Tensor, layer_idx: int) -> PagedRows:
        """A layer's keys and values [batch, num_key_value_heads, tokens, head_dim] of the next chunk. Layers come in their order."""
        if layer_idx == 0:
            self._begin(k, v)
        elif self._step is None or layer_idx != self._next_layer:
            raise ValueError(f"layer_idx is {layer_idx}; accepted: {self._next_layer}, every layer once a chunk and in order")
        rows = self.pool.layers[layer_idx].store(_tokens(k, self._real), _tokens(v, self._real), self._step)
        self._next_layer = (layer_idx + 1) % len(self.layers)
        return PagedRows(rows, k, v, self._real)

    def _begin(self, k, v):
        batch, heads, tokens, head_dim = k.shape
        if (heads, head_dim) != self.pool.signature[:2] or v.shape != k.shape:
            raise ValueError(f"key_states has shape {list(k.shape)} and value_states {list(v.shape)}; the pool holds "
                             f"[batch, {self.pool.signature[0]}, tokens, {self.pool.signature[1]}]")
        if self.sequences and batch != len(self.sequences):
            raise ValueError(f"key_states has {batch} rows; this cache has {len(self.sequences)}")
        real = self._real_columns(batch, tokens)
        new = [] if self.sequences else self.pool.new(batch)
        counts = [tokens] * batch if real is None else real.sum(dim=1).tolist()
        try:
            self._step = self.pool.append(list(zip(self.sequences or new, counts)))
        except Exception:
            for sequence in new:
                self.pool.free(sequence)
            raise
        self.sequences = self.sequences or new
        self._real = None if real is None else real.flatten().nonzero()[:, 0].to(k.device)
        self.columns += tokens

    def _real_columns(self, batch, tokens):
        """bool [batch, tokens] on the CPU, None where every token is real."""
        if self._padding is None or tokens == 1 and self.columns:
            return None
        real = self._padding[:, self.columns : self.columns + tokens].bool().cpu()
        if real.shape != (batch, tokens):
            raise ValueError(f"attention_mask has shape {list(self._padding.shape)}; accepted: [{batch}, {self.columns + tokens}]")
        return None if real.all() else real

    # ---- rows ----------------------------------------------------------------------------------------------------

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes what row beam_idx[i] was (beam search)."""
        self._select(rows_of("beam_idx", beam_idx, len(self.sequences)))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows in this order; a row named again is forked, one not named is freed. Also takes a bool mask."""
        self._select(rows_of("indices", indices, len(self.sequences)))

    def _select(self, chosen):
        dropped = set(range(len(self.sequences))) - set(chosen)
        self.pool.rings.check_room(len(chosen) - len(set(chosen)) - len(dropped))
        for i in dropped:
            self.pool.free(self.sequences[i])
        seen, rows = set(), []
        for i in chosen:
            rows.append(self.pool.fork(self.sequences[i]) if i in seen else self.sequences[i])
            seen.add(i)
        self.sequences = rows

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        check_repeats(repeats)
        self._select([row for row in range(len(self.sequences)) for _ in range(repeats)])

    def crop(self, tokens: int) -> None:
        """Take tokens back from every row: negative = how many (as transformers 5.16+ means it), positive = the columns to keep."""
        taken = -tokens if tokens <= 0 else max(self.columns - tokens, 0)
        self.crop_rows([max(sequence.length - taken, 0) for sequence in self.sequences])
        self.columns = max(self.columns - taken, 0)

    def crop_rows(self, lengths: list[int]) -> None:
        """Keep the first lengths[i] tokens of row i, padding not counted."""
        if len(lengths) != len(self.sequences):
            raise ValueError(f"lengths has {len(lengths)} entries; accepted: {len(self.sequences)}, one a row")
        for sequence, length in zip(self.sequences, lengths):
            self.pool.check_crop(sequence, length)
        for sequence, length in zip(self.sequences, lengths):
            self.pool.crop(sequence, length)

    def join(self, other: "Int4PagedCache") -> None:
        """Take over the rows of another cache of the same pool, which has none afterwards."""
        if other.pool is not self.pool:
            raise ValueError("other is a cache of another pool; accepted: one of the same pool")
        self.sequences, other.sequences = self.sequences + other.sequences, []
        self.columns, other.columns = max(self.columns, other.columns), 0

    def free(self) -> None:
        """Give every sequence back to the pool; the cache is empty then."""
        rows, self.sequences, self.columns, self._step = self.sequences, [], 0, None
        for sequence in rows:
            self.pool.free(sequence)

    reset = free

    def __del__(self):
        if getattr(self, "sequences", None):
            self.free()

    # ---- what a patched model asks -------------------------------------------------------------------------------

    def check_model(self, model_config) -> None:
        """Raise ValueError when the pool was made for a model of another shape."""
        check_same_signature(self.pool.signature, model_config)

    def activate_past_recording(self) -> None:
        """Pages keep what a crop within the rollback needs."""

    @property
    def is_between_chunks(self) -> bool:
        """Whether every layer has stored the newest chunk."""
        return self._next_layer == 0

    @property
    def lengths(self) -> list[int]:
        """Tokens per row, padding not counted."""
        return [sequence.length for sequence in self.sequences]

    @property
    def batch_size(self) -> int:
        return len(self.sequences) or -1

    def memory_footprint(self) -> int:
        """Bytes of the whole pool, which other caches may share."""
        return self.pool.nbytes
