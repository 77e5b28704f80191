"""PagePool: the memory of many sequences. Fixed at the start: pages for the codes of all layers, and a ring of exact rows per sequence.

    sequence a   | page 7 | page 2 | page 9 |        forked: both own pages 7 and 2
    sequence b   | page 7 | page 2 | page 4 |        the last page was copied when one of them wrote on

Pages and block tables follow vLLM's paged attention (arXiv 2309.06180).
"""

from dataclasses import dataclass

import torch

from .. import ops
from ..cache import signature
from ..config import ROLLBACK, Int4KVConfig, make_config, text_config
from .batch import Span, Step
from .group import Group, Table
from .layer import PagedLayer, plan_layers
from .layout import PageLayout
from .rings import FixedRings

PAGE_SIZE = 32
CHUNK = 512  # tokens that a sliding layer takes at once beyond those that it sees


@dataclass
class Sequence:
    """A sequence of a pool: its length in tokens, its block tables, its ring. Made and changed by the pool alone."""

    tables: list[Table]
    ring: int
    length: int = 0
    recent_start: int = 0
    freed: bool = False


def check_paged(config: Int4KVConfig) -> None:
    """Raise ValueError for what a page cannot hold."""
    for name, accepted in (("sinks", 0), ("start", 0), ("max_cache_len", None)):
        if getattr(config, name) != accepted:
            raise ValueError(f"{name} is {getattr(config, name)}; accepted in pages: {accepted}")


class PagePool:
    """pages: of page_size tokens each, for layers with full attention; those of sliding layers are added, as many as `sequences` need.

    sequences: how many there can be at once. model_config, config: as for Int4Cache; "prompt" centres are one for the pool, taken from the
    first tokens of its first sequence. Raises ValueError for sinks, start and max_cache_len, which pages do not have.
    """

    def __init__(self, model_config, config: Int4KVConfig | None = None, *, pages: int, sequences: int = 16, page_size: int = PAGE_SIZE,
                 dtype: torch.dtype = torch.float32, device="cpu", **overrides):
        for name, value in (("pages", pages), ("sequences", sequences), ("page_size", page_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; accepted: 1 or more")
        self.config, self.page_size, self.dtype, self.device = make_config(config, **overrides), page_size, dtype, torch.device(device)
        check_paged(self.config)
        ops.check_device("device", self.device)
        self.signature = signature(model_config)
        self.config.check_layers(len(self.signature[2]))
        if self.config.calibration is not None:
            self.config.calibration.check_model(text_config(model_config))
        self._allocate(pages, sequences)

    def _allocate(self, pages, sequences):
        heads, head_dim, windows = self.signature
        configs, sides, ring = plan_layers(self.config, len(windows), heads, head_dim, self.device, ROLLBACK)
        self.rings = FixedRings(sequences, ring, self.device)
        self.groups, self.layers = [], [None] * len(windows)
        for window in sorted(set(windows), key=lambda w: (w is not None, w or 0)):
            among = [i for i, w in enumerate(windows) if w == window]
            layout = PageLayout({i: sides[i] for i in among}, self.page_size, self.dtype)
            count = pages if window is None else self._sliding_pages(window, sequences)
            group = Group(among, window, layout, count, ROLLBACK, self.device)
            for i in among:
                stored = layout.views(group.memory, i)
                self.layers[i] = PagedLayer(configs[i], sides[i], stored, len(self.groups), window, self.rings.views(i))
            self.groups.append(group)

    def _sliding_pages(self, window, sequences):
        return sequences * (-(-(window + ROLLBACK) // self.page_size) + 1) + -(-CHUNK // self.page_size)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages and rings, in use or not."""
        return sum(group.memory.numel() for group in self.groups) + self.rings.nbytes

    @property
    def copied_bytes(self) -> int:
        """Bytes that forks and writes behind them have copied so far, rings included."""
        return self._copied_rings + sum(group.copied_bytes for group in self.groups)

    _copied_rings = 0

    # ---- sequences -----------------------------------------------------------------------------------------------

    def new(self, number: int = 1) -> list[Sequence]:
        """Empty sequences. OutOfRings when there would be more than `sequences`."""
        self.rings.check_room(number)
        return [Sequence([Table() for _ in self.groups], self.rings.take()) for _ in range(number)]

    def fork(self, sequence: Sequence) -> Sequence:
        """A second sequence with the same tokens, over the same pages: only the ring is copied."""
        self._check(sequence)
        ring = self.rings.take()
        self._copied_rings += self.rings.copy([sequence.ring], [ring])
        tables = [group.share(table) for group, table in zip(self.groups, sequence.tables)]
        return Sequence(tables, ring, sequence.length, sequence.recent_start)

    def place(self, length: int, held_from: list[int], recent_start: int) -> Sequence:
        """A sequence of `length` tokens whose rows the caller puts into its pages, per group from token held_from[group] on, and its ring.

        OutOfRings or OutOfPages, with nothing changed, when there is no room.
        """
        self.rings.check_room(1)
        plans = [group.plan(Table(), 0, length, first) for group, first in zip(self.groups, held_from)]
        for group, plan in zip(self.groups, plans):
            group.check_room([plan])
        for group, plan in zip(self.groups, plans):
            group.carry_out(plan)
        return Sequence([plan.table for plan in plans], self.rings.take(), length, recent_start)

    def crop(self, sequence: Sequence, length: int) -> None:
        """Keep the first `length` tokens. ValueError where sliding layers have forgotten what the rest would see."""
        self.check_crop(sequence, length)
        for group, table in zip(self.groups, sequence.tables):
            group.crop(table, length)
        sequence.recent_start = min(self.recent_start(sequence), length)
        sequence.length = length

    def check_crop(self, sequence: Sequence, length: int) -> None:
        """What crop() refuses, with nothing changed."""
        self._check(sequence)
        if not 0 <= length <= sequence.length:
            raise ValueError(f"length is {length}; accepted: 0 .. {sequence.length}, the sequence's")
        for group, table in zip(self.groups, sequence.tables):
            group.check_crop(table, sequence.length, length)

    def free(self, sequence: Sequence) -> None:
        """Give back its pages and its ring. ValueError when that was done before."""
        self._check(sequence)
        for group, table in zip(self.groups, sequence.tables):
            group.release(table)
        self.rings.release(sequence.ring)
        sequence.freed = True

    def recent_start(self, sequence: Sequence) -> int:
        """The first token whose exact row is in its ring."""
        return max(sequence.recent_start, sequence.length - self.rings.rows)

    def _check(self, sequence):
        if sequence.freed:
            raise ValueError("sequence was freed before; accepted: one that is held")

    # ---- writing -------------------------------------------------------------------------------------------------

    def append(self, added: list[tuple[Sequence, int]]) -> Step:
        """Make room for so many tokens in each sequence, and account for them; every layer of the pool then stores them.

        All or nothing: OutOfPages, with nothing changed, when the sequences together need more pages than there are.
        """
        if len({id(sequence) for sequence, _ in added}) < len(added):
            raise ValueError("a sequence is given twice in one step; accepted: each once, so that no page has two writers")
        exact = self.config.prefill == "exact"
        plans = [self._plans(sequence, tokens, exact) for sequence, tokens in added]
        for g, group in enumerate(self.groups):
            group.check_room([plan[g] for plan in plans])
        spans = [self._carry_out(*pair, plan, exact) for pair, plan in zip(added, plans)]
        return Step(spans, self.page_size, self.rings.rows, self.device, exact)

    def _stored_from(self, sequence, tokens, exact):
        """Per group: in exact prefill the first tokens see each other as they are, and only later queries need what is stored."""
        begin = sequence.length + tokens if exact and sequence.length == 0 else sequence.length
        return [group.seen_from(begin) for group in self.groups]

    def _plans(self, sequence, tokens, exact):
        self._check(sequence)
        kept = self._stored_from(sequence, tokens, exact)
        begin = sequence.length
        return [group.plan(table, begin, begin + tokens, first) for group, table, first in zip(self.groups, sequence.tables, kept)]

    def _carry_out(self, sequence, tokens, plans, exact):
        kept, begin = self._stored_from(sequence, tokens, exact), sequence.length
        for group, plan in zip(self.groups, plans):
            group.carry_out(plan)
        tables = [table.by_token() for table in sequence.tables]
        span = Span(begin, tokens, tables, [max(kept[g], begin) for g in range(len(kept))], sequence.ring, self.recent_start(sequence))
        sequence.recent_start, sequence.length = self.recent_start(sequence), begin + tokens
        return span
