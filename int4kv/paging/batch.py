"""One step over many sequences: which tokens each of them adds, and the tensors that the paged ops take for that.

Tokens of all sequences lie one after the other, [tokens, heads, head_dim]. Three kinds of calls share a step:

    FRESH   sequences that start: their tokens attend to each other as they are, and are stored
    STEP    sequences that add one token: one call of each op for all of them
    CHUNK   a sequence that adds several tokens to others: a call of its own, with exact rows for the whole chunk
"""

from dataclasses import dataclass

import torch

FRESH, STEP, CHUNK = "fresh", "step", "chunk"


@dataclass
class Span:
    """What one sequence adds: tokens begin .. begin + tokens.

    tables: per group of layers its pages, table[t // page_size] for token t. stored_from: per group the first token that any later query
    can see: older ones of this span are not stored. ring, recent_start: its ring, and the first token that lies in it.
    """

    begin: int
    tokens: int
    tables: list[list[int]]
    stored_from: list[int]
    ring: int
    recent_start: int

    @property
    def end(self) -> int:
        return self.begin + self.tokens


class Call:
    """The arguments of both ops for some spans of a step, on a device. tokens: where they are among the tokens of the step.

    slots: per group int64 [tokens]. tables: per group int32 [spans, pages]. recent_slots: int64 [tokens], for rings of ring_rows rows.
    """

    def __init__(self, kind: str, spans: list[Span], tokens, page_size: int, ring_rows: int, device):
        self.kind, self.spans, self.tokens = kind, spans, tokens
        self.max_queries = max(span.tokens for span in spans)
        self.slots = [_int64([slot for span in spans for slot in _slots(span, g, page_size)], device) for g in range(len(spans[0].tables))]
        self.tables = [_padded([span.tables[g] for span in spans], device) for g in range(len(spans[0].tables))]
        self.recent_slots = _int64([slot for span in spans for slot in _recent_slots(span, ring_rows)], device) if ring_rows else None
        self.lengths = _int32([span.end for span in spans], device)
        self.rings = _int32([span.ring for span in spans], device)
        self.recent_starts = _int32([max(span.recent_start, span.end - ring_rows) for span in spans], device)
        starts = [0]
        for span in spans:
            starts.append(starts[-1] + span.tokens)
        self.query_starts = _int32(starts, device)


class Step:
    """spans: in the order of their tokens. exact: the first tokens of a sequence attend to each other as they are (prefill="exact")."""

    def __init__(self, spans: list[Span], page_size: int, ring_rows: int, device, exact: bool):
        self.spans, self.tokens = spans, sum(span.tokens for span in spans)
        self.fresh = exact and all(span.begin == 0 for span in spans)
        found: dict = {}
        first = 0
        for i, span in enumerate(spans):
            kind = FRESH if exact and span.begin == 0 else STEP if span.tokens == 1 else CHUNK
            found.setdefault((kind, i if kind == CHUNK else 0), []).append((span, range(first, first + span.tokens)))
            first += span.tokens
        self.calls = []
        for (kind, _), part in found.items():
            among = [span for span, tokens in part if tokens]
            if among:
                self.calls.append(Call(kind, among, self._where([tokens for _, tokens in part], device), page_size, ring_rows, device))

    def _where(self, ranges, device):
        """A slice where the tokens lie together, else their indices."""
        first, end = ranges[0].start, ranges[-1].stop
        if end - first == sum(map(len, ranges)):
            return slice(first, end)
        return _int64([t for tokens in ranges for t in tokens], device)


def _slots(span, group, page_size):
    table, kept = span.tables[group], span.stored_from[group]
    return [-1 if t < kept else table[t // page_size] * page_size + t % page_size for t in range(span.begin, span.end)]


def _recent_slots(span, ring_rows):
    return [span.ring * ring_rows + t % ring_rows if t >= span.end - ring_rows else -1 for t in range(span.begin, span.end)]


def _padded(tables, device):
    longest = max(map(len, tables))
    return _int32([table + [0] * (longest - len(table)) for table in tables], device)


def _int32(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


def _int64(values, device):
    return torch.tensor(values, dtype=torch.int64, device=device)
