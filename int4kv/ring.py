"""Buffers addressed by token: token t lives in slot t % capacity of every tensor."""

import torch


def new_rows(batch: int, heads: int, capacity: int, width: int, dtype: torch.dtype, device) -> torch.Tensor:
    """Zeros [batch, heads, capacity, width]. Packed codes stay unset, so that what is not written yet takes no resident memory."""
    make = torch.empty if dtype == torch.uint8 else torch.zeros  # codes without their scales stand for 0
    return make(batch, heads, capacity, width, dtype=dtype, device=device)


class TokenRing:
    """Tensors [batch, heads, capacity, ...] that share one capacity and hold the tokens start .. end.

    While capacity covers the whole sequence this is a plain preallocated buffer; below, it is a ring.
    """

    def __init__(self, tensors: list[torch.Tensor], start: int = 0):
        self.tensors, self.start = tensors, start
        self.capacity = tensors[0].shape[2]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def wrote(self, begin: int, first: int, end: int) -> None:
        """Account for tokens first .. end written behind a sequence of length begin; what they overwrote is gone."""
        self.start = max(first if first > begin else min(self.start, first), end - self.capacity)

    def advance(self, end: int) -> None:
        """wrote() for the one token before end."""
        if end - self.start > self.capacity:
            self.start = end - self.capacity

    def resized(self, capacity: int, end: int) -> "TokenRing":
        """A ring of another capacity with the newest tokens before end that both can hold."""
        ring = TokenRing(list(self.tensors), self.start)
        ring.resize(capacity, end)
        return ring

    def resize(self, capacity: int, end: int) -> None:
        """The same in place. Tensor after tensor, each old one let go at once: at no time are two of them held twice."""
        first = max(min(self.start, end), end - capacity)
        for i, t in enumerate(self.tensors):
            self.tensors[i] = new_rows(*t.shape[:2], capacity, t.shape[3], t.dtype, t.device)
            _copy_tokens(t, self.tensors[i], first, end)
        self.start, self.capacity = first, capacity

    def copy_from(self, other: "TokenRing", first: int, end: int) -> None:
        """Copy tokens first .. end."""
        for mine, its in zip(self.tensors, other.tensors):
            _copy_tokens(its, mine, first, end)

    def tokens(self, first: int, end: int) -> list[torch.Tensor]:
        """Tokens first .. end in their order, [batch, heads, end - first, ...]: views where they do not wrap around."""
        here, there = first % self.capacity, first % self.capacity + end - first
        if there <= self.capacity:
            return [t[:, :, here:there] for t in self.tensors]
        return [torch.cat([t[:, :, here:], t[:, :, : there - self.capacity]], dim=2) for t in self.tensors]

    def put(self, tensors: list[torch.Tensor], first: int) -> None:
        """Hold tokens first, first + 1, ... and no others, from what tokens() gave; they must fit."""
        for mine, its in zip(self.tensors, tensors):
            _copy_tokens(its, mine, first, first + its.shape[2], origin=first)
        self.start = first

    def slots(self, first: int, end: int) -> slice:
        """Where tokens first .. end live, of those that are held: one slice, of all slots where they wrap around."""
        first = min(max(first, self.start), end)
        here = first % self.capacity
        return slice(here, here + end - first) if here + end - first <= self.capacity else slice(0, self.capacity)

    def map(self, change) -> None:
        """Replace every tensor by change(tensor)."""
        self.tensors = [change(t) for t in self.tensors]

    def select(self, rows: torch.Tensor, end: int) -> None:
        """Make these sequences the batch, in new buffers, tensor after tensor; of tokens before end what is held is copied, no more."""
        slots = self.slots(self.start, end)
        for i, t in enumerate(self.tensors):
            self.tensors[i] = new_rows(len(rows), *t.shape[1:], t.dtype, t.device)
            self.tensors[i][:, :, slots] = t[:, :, slots].index_select(0, rows)

    def copy_rows(self, targets: list[int], sources: list[int], first: int, end: int) -> None:
        """In place: sequences `targets` of the batch get what sequences `sources` hold of tokens first .. end."""
        slots = self.slots(first, end)
        for t in self.tensors:
            sequences = t[:, :, slots].unbind(0)
            for target, rows in zip(targets, [sequences[source].clone() for source in sources]):
                sequences[target].copy_(rows)


def _copy_tokens(source: torch.Tensor, target: torch.Tensor, first: int, end: int, origin: int = 0) -> None:
    """Copy tokens first .. end in as few runs as the two wrap-arounds allow. origin: the token in the source's slot 0."""
    while first < end:
        there, here = (first - origin) % source.shape[2], first % target.shape[2]
        run = min(end - first, source.shape[2] - there, target.shape[2] - here)
        target[:, :, here : here + run] = source[:, :, there : there + run]
        first += run
