"""What one layer holds and how a chunk gets in: packed codes of every token, exact rows of the newest, the centre.

                 end - window           end - recent   end
    codes   |........|=====================================|      every token, packed
    recent                    |----------[=================]      the newest rows, exact; the query's own window in [ ]
                              recent.start
    sink    |==|                                                  the first rows, exact, when asked for
"""

from sys import intern  # names of options, which the ops find without a comparison then

import torch

from . import ops
from .centre import EarlyRows
from .config import ROLLBACK, Int4KVConfig
from .ring import TokenRing, new_rows
from .side import K, V, sides_of

GROWTH = 256  # tokens that a growing layer starts with
DOUBLED = 8192  # tokens up to which it doubles; from there on it grows by a quarter, so that a fifth at most stands empty
RECORDED_ROLLBACK = 256  # tokens that a crop may take back at most while past states are recorded


class PackedChunk:
    """What update() hands to attention instead of key and value tensors: the stored rows and the chunk itself."""

    __slots__ = ("layer", "k", "v", "codes", "recent", "start", "end", "options", "exact")

    def __init__(self, layer, k, v, codes, recent, start, end, options, exact):
        self.layer, self.k, self.v = layer, k, v
        self.codes, self.recent, self.start, self.end = codes, recent, start, end
        self.options = options  # what attend takes beside them, a layer's _read_options
        self.exact = exact  # the first chunk of a sequence in exact prefill: k and v are all there is to attend to


class NextToken:
    """What the next single token needs, made once: while it is there, storing one changes nothing but positions.

    shape, dtype: those of its key. until: the length up to which there is room. write, read: options of both ops.
    """

    __slots__ = ("shape", "dtype", "until", "write", "read")

    def __init__(self, shape, dtype, until, write, read):
        self.shape, self.dtype, self.until, self.write, self.read = shape, dtype, until, write, read


class PackedStorage:
    """The buffers of one layer. store() takes keys and values [batch, num_key_value_heads, tokens, head_dim]."""

    croppable = ROLLBACK  # tokens for which the first rows outlive the centre that is made of them

    def __init__(self, config: Int4KVConfig, sliding_window: int | None, layer_idx: int, num_layers: int):
        self.config = config.for_layer(layer_idx, num_layers)
        self.sliding_window, self.layer_idx = sliding_window, layer_idx
        self.is_sliding = sliding_window is not None
        self.record_past = False  # transformers reads and clears it by this name
        self.expected_length, self.padding, self.held_heads = None, None, None
        self.clear()

    def clear(self):
        self.length, self.anchor = 0, 0
        self.codes: TokenRing | None = None
        self.recent: TokenRing | None = None
        self.sink: TokenRing | None = None
        self.centres: list[torch.Tensor | None] = [None, None]
        self.early: EarlyRows | None = None
        self.next: NextToken | None = None
        self.alike: torch.Tensor | None = None  # what int4kv/batches.py knows of the batch
        self.is_initialized = False

    def fix_shape(self, k):
        """Shape, dtype and device of all that comes, from the first keys."""
        self.batch_size, self.num_heads, _, self.head_dim = k.shape
        self.dtype, self.device = k.dtype, k.device
        ops.check_device("k", k.device)
        self.sides = sides_of(self.config, self.layer_idx, self.num_heads, self.head_dim, self.device, self.held_heads)
        self.is_initialized = True

    # ---- writing -------------------------------------------------------------------------------------------------

    def store(self, k, v) -> PackedChunk:
        """Write a chunk behind what is held, and say where attention finds all that its queries see."""
        tokens, begin, fresh = k.shape[2], self.length, self.length == 0
        end, exact = begin + tokens, fresh and self.config.prefill == "exact"
        self.next = None
        self.reserve(tokens)
        self._settle_centre(k, v, begin, end)
        start = max(begin - self.sliding_window + 1, 0) if self.is_sliding else 0
        if exact:  # attention reads k and v: keep just what later queries can see
            codes, recent, first = self.codes, self.recent, end - min(tokens, self.codes.capacity)
        else:
            codes, recent, first = self._room(self.codes, end - start, begin), self._recent_room(tokens, begin), begin
        self._write(k[:, :, first - begin :], v[:, :, first - begin :], codes, recent, first)
        self._keep_newest(codes, recent, begin, first, end)
        self.length = end
        self._expect_next()
        return PackedChunk(self, k, v, codes, recent, start, end, self._read_options(recent, self._exact_window(tokens, end)), exact)

    def store_next(self, k, v) -> PackedChunk:
        """store() of the token that self.next was made for."""
        begin, codes, recent = self.length, self.codes, self.recent
        end = begin + 1
        ops.quantize_kv(k, v, *codes.tensors, begin, **self.next.write)
        codes.advance(end)
        if recent is not None:
            recent.advance(end)
        self.length = end
        start = max(end - self.sliding_window, 0) if self.is_sliding else 0
        return PackedChunk(self, k, v, codes, recent, start, end, self.next.read, False)

    def _expect_next(self):
        """Make self.next, unless more than the position changes with the next token."""
        config, length = self.config, self.length
        unsettled = self.early is not None or self.record_past or length < max(config.start + 1, config.sinks)
        if not unsettled and not config.check_finite:
            room = (config.max_cache_len or float("inf")) if self.is_sliding else self.codes.capacity
            self.next = NextToken((self.batch_size, self.num_heads, 1, self.head_dim), self.dtype, room, self._write_options(self.recent),
                                  self._read_options(self.recent, config.exact_window(length + 1)))

    def _write(self, k, v, codes, recent, position):
        ops.quantize_kv(k, v, *codes.tensors, position, **self._write_options(recent))
        if self.sink is not None and position < self.sink.capacity:
            k_rows, v_rows = self.sink.tensors
            first = slice(self.sink.capacity - position)
            ops.quantize_kv(k[:, :, first], v[:, :, first], k_rows, k_rows[..., :0].half(), v_rows, v_rows[..., :0].half(), position,
                            **self._write_options(None))

    def _write_options(self, recent):
        return _given(k_centre=self.centres[K], v_centre=self.centres[V], codebook=self.config.codebook,
                      k_rotation=self.sides[K].rotation.write, v_rotation=self.sides[V].rotation.write, **_exact_rows("recent", recent))

    def _read_options(self, recent, recent_window):
        return _given(v_centre=self.centres[V], codebook=self.config.codebook, window=self.sliding_window,
                      k_rotation=self.sides[K].rotation.read, v_rotation=self.sides[V].rotation.read,
                      recent_window=recent_window or None, **_exact_rows("recent", recent), **_exact_rows("sink", self.sink))

    def _keep_newest(self, codes, recent, begin, first, end):
        for mine, written in ((self.codes, codes), (self.recent, recent)):
            if written is None:
                continue
            written.wrote(begin, first, end)
            if mine is not None and written is not mine:
                mine.copy_from(written, max(written.start, end - mine.capacity), end)
                mine.wrote(begin, written.start, end)

    def _exact_window(self, tokens, end):
        """How many newest tokens a query reads exactly; in exact prefill a chunk reads all of itself so."""
        return self.config.exact_window(end) + (tokens if self.config.prefill == "exact" and tokens > 1 else 0)

    def _settle_centre(self, k, v, begin, end):
        for which, side in enumerate(self.sides):
            if side.centre_kind == "calibrated" and self.centres[which] is None:
                self.centres[which] = side.calibrated_centre(len(k))
        if begin == end or not any(side.centre_kind == "prompt" for side in self.sides):
            return
        if begin == 0:
            self.early = EarlyRows(k, v, self.config.centre_tokens, self.padding)
        if self.early is None:
            return
        self.early.add(k, v, begin)
        if begin == 0 or (end >= self.early.needed and not self.early.settled):
            self.early.settled = end >= self.early.needed
            for which, side in enumerate(self.sides):
                self.centres[which] = self.early.mean(which, end) if side.centre_kind == "prompt" else self.centres[which]
            first, self.alike = max(begin - self.codes.capacity, 0), None
            self._write(*self.early.rows(first, begin), self.codes, self.recent, first)
        if end >= self.early.needed + self.croppable:  # no crop can unsettle it any more
            self.early = None

    # ---- room ----------------------------------------------------------------------------------------------------

    def _rollback(self, tokens):
        """Tokens that a later crop may take back: a constant few; while recording, all since the last crop within reason."""
        if not self.record_past:
            return ROLLBACK
        needed = min(self.length + tokens - self.anchor, RECORDED_ROLLBACK)
        return max(ROLLBACK, -(-needed // ROLLBACK) * ROLLBACK)

    def reserve(self, tokens):
        """Buffers for so many tokens more than are held."""
        end, rollback = self.length + tokens, self._rollback(tokens)
        if self.codes is None:
            self.codes = TokenRing(self._new_codes(self._capacity(end, rollback)))
            self.sink = TokenRing(self._new_rows(self.config.sinks)) if self.config.sinks and not self.is_sliding else None
        needed = self.sliding_window - 1 + rollback if self.is_sliding else end
        if needed > self.codes.capacity:
            grown = needed if self.is_sliding else max(needed, _grown(self.codes.capacity))
            self.codes.resize(min(grown, self.config.max_cache_len or grown), self.length)
        self._reserve_recent(end, rollback)

    def _reserve_recent(self, end, rollback):
        window = self.config.exact_window(end)
        if window == 0:
            self.recent = None
        elif self.recent is None:
            self.recent = TokenRing(self._new_rows(window + rollback), start=self.length)
        elif window + rollback > self.recent.capacity or (self.config.start and window + rollback < self.recent.capacity):
            self.recent.resize(window + rollback, self.length)

    def _capacity(self, end, rollback):
        if self.is_sliding:
            return self.sliding_window - 1 + rollback
        return self.config.max_cache_len or max(end, self.expected_length or GROWTH)

    def _new_codes(self, capacity):
        held = []
        for side in self.sides:
            width, numbers, dtype = side.row_sizes(self.dtype)
            held += [self._rows(capacity, width, dtype), self._rows(capacity, numbers, torch.float16)]
        return held

    def _new_rows(self, rows):
        dtype = self.dtype if self.config.is_exact else torch.float16
        return [self._rows(rows, self.head_dim, dtype) for _ in self.sides]

    def _rows(self, capacity, width, dtype):
        return new_rows(self.batch_size, self.num_heads, capacity, width, dtype, self.device)

    def _room(self, ring, visible, begin):
        """The ring itself, or for a chunk that would overwrite what it still reads a transient larger copy."""
        return ring if visible <= ring.capacity else ring.resized(visible, begin)

    def _recent_room(self, tokens, begin):
        if self.recent is not None:
            return self._room(self.recent, self.config.exact_window(begin + tokens) + tokens, begin)
        exact = self.config.prefill == "exact" and not self.config.is_exact and tokens > 1
        return TokenRing(self._new_rows(tokens), start=begin) if exact else None

    # ---- editing and accounting ----------------------------------------------------------------------------------

    def cut(self, end: int):
        """Make token `end` the next one. What a sliding layer has already dropped cannot come back: ValueError."""
        first = max(end - self.sliding_window + 1, 0) if self.is_sliding else 0
        if self.codes is not None and self.codes.start > first:
            raise ValueError(
                f"crop is {end - self.length}; layer {self.layer_idx} slides over {self.sliding_window} tokens and can take back "
                f"{max(self.length - self.codes.start - self.sliding_window + 1, 0)} at most (activate_past_recording() allows more)")
        for ring in (self.codes, self.recent):
            if ring is not None:
                ring.start = min(ring.start, end)
        if self.early is not None:
            self.early.settled = self.early.settled and end >= self.early.needed
        if end == 0:
            self.centres, self.early = [None, None], None
        self.length = self.anchor = end
        self.alike = None if self.alike is None else self.alike.clamp_max(end)
        self.next = None

    def map(self, change):
        """Replace every tensor by change(tensor): to move them to another device and back."""
        self.next = None
        for held in (self.codes, self.recent, self.sink, self.early):
            if held is not None:
                held.map(change)
        self.centres = [None if centre is None else change(centre) for centre in self.centres]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor this layer holds, by name."""
        held = {}
        if self.codes is not None:
            held |= zip(("k_codes", "k_scales", "v_codes", "v_scales"), self.codes.tensors)
        if self.recent is not None:
            held |= zip(("k_recent", "v_recent"), self.recent.tensors)
        if self.sink is not None:
            held |= zip(("k_sink", "v_sink"), self.sink.tensors)
        if self.early is not None:
            held |= zip(("k_early", "v_early", "early_real"), (*self.early.ring.tensors, self.early.real))
        return held | {f"{'kv'[i]}_centre": centre for i, centre in enumerate(self.centres) if centre is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of all of them: whole buffers, full or not."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())


def _grown(capacity):
    return 2 * capacity if capacity < DOUBLED else capacity + capacity // 4


def _exact_rows(name, ring):
    return {} if ring is None else {intern(f"k_{name}"): ring.tensors[K], intern(f"v_{name}"): ring.tensors[V]}


def _given(**options):
    """Without those that are None: an op takes 0.3 us for every option it is passed (AMD EPYC, torch 2.13)."""
    return {name: value for name, value in options.items() if value is not None}
