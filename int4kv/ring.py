"""Buffers addressed by token: token t lives in slot t % capacity of every tensor."""

import torch


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
        fresh = [t.new_zeros(*t.shape[:2], capacity, *t.shape[3:]) for t in self.tensors]
        ring = TokenRing(fresh, start=max(min(self.start, end), end - capacity))
        ring.copy_from(self, ring.start, end)
        return ring

    def copy_from(self, other: "TokenRing", first: int, end: int) -> None:
        """Copy tokens first .. end, in as few runs as the two wrap-arounds allow."""
        while first < end:
            here, there = first % self.capacity, first % other.capacity
            run = min(end - first, self.capacity - here, other.capacity - there)
            for mine, its in zip(self.tensors, other.tensors):
                mine[:, :, here : here + run] = its[:, :, there : there + run]
            first += run

    def map(self, change) -> None:
        """Replace every tensor by change(tensor): reorder, select, move."""
        self.tensors = [change(t) for t in self.tensors]
