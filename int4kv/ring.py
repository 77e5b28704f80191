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

    def map(self, change) -> None:
        """Replace every tensor by change(tensor): reorder, select, move."""
        self.tensors = [change(t) for t in self.tensors]


def _copy_tokens(source: torch.Tensor, target: torch.Tensor, first: int, end: int) -> None:
    """Copy tokens first .. end in as few runs as the two wrap-arounds allow."""
    while first < end:
        there, here = first % source.shape[2], first % target.shape[2]
        run = min(end - first, source.shape[2] - there, target.shape[2] - here)
        target[:, :, here : here + run] = source[:, :, there : there + run]
        first += run
