"""Rings: the newest rows of every running sequence as they are, beside their codes; token t lies in row t % rows of its sequence's ring."""

import math
from dataclasses import dataclass

import torch

from ..config import Int4KVConfig


class OutOfRings(RuntimeError):
    """More sequences at once than there are rings."""


@dataclass(frozen=True)
class RingShape:
    """layers: indices of those that keep exact rows. rows: 0 for none at all."""

    layers: list[int]
    heads: int
    rows: int
    head_dim: int

    @classmethod
    def of(cls, configs: list[Int4KVConfig], heads: int, head_dim: int, rollback: int) -> "RingShape":
        """What layers with these configs keep: the newest rows that a query reads exactly, and those that a crop of `rollback` brings back."""
        layers = [i for i, config in enumerate(configs) if config.recent]
        return cls(layers, heads, configs[layers[0]].recent + rollback if layers else 0, head_dim)

    @property
    def dimensions(self) -> tuple[int, ...]:
        """[layers, 2 (K, V), num_key_value_heads, rows, head_dim]"""
        return len(self.layers), 2, self.heads, self.rows, self.head_dim

    @property
    def nbytes(self) -> int:
        """Bytes of one ring, in float16."""
        return math.prod(self.dimensions) * torch.float16.itemsize


class Rings:
    """Exact rows of some layers. tensor: float16 [rings, layers, 2 (K, V), num_key_value_heads, rows, head_dim], a ring one run of memory.

    layers: indices of the layers that keep exact rows; without any there are no rows at all.
    """

    def __init__(self, tensor: torch.Tensor, layers: list[int]):
        self.tensor, self.rows, self._place = tensor, tensor.shape[4] if layers else 0, {layer: i for i, layer in enumerate(layers)}

    def copy(self, sources: list[int], targets: list[int]) -> int:
        """Copy whole rings. Returns the bytes copied."""
        if not sources or not self.rows:
            return 0
        rows = self.tensor[torch.tensor(sources, device=self.tensor.device)]
        self.tensor[torch.tensor(targets, device=self.tensor.device)] = rows
        return rows.numel() * rows.element_size()

    def views(self, layer: int) -> list[torch.Tensor] | None:
        """A layer's exact keys and values, each [rings, rows, num_key_value_heads, head_dim]; None where there are none."""
        if layer not in self._place or not self.rows:
            return None
        return [self.tensor[:, self._place[layer], which].transpose(1, 2) for which in (0, 1)]


class FixedRings(Rings):
    """So many rings, all made at the start. Sequences are counted also where no rows are kept."""

    def __init__(self, count: int, shape: RingShape, device):
        self.count = count
        super().__init__(torch.zeros(count, *shape.dimensions, dtype=torch.float16, device=device), shape.layers)
        self._free = list(range(count))[::-1]

    @property
    def nbytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()

    @property
    def free(self) -> int:
        """Rings that no sequence has."""
        return len(self._free)

    def check_room(self, number: int) -> None:
        """OutOfRings when fewer than so many rings are free."""
        if number > self.free:
            raise OutOfRings(f"{number} sequences are to be added and {self.free} of {self.count} are free; free sequences, or make a pool "
                             "for more of them")

    def take(self) -> int:
        """A ring for a new sequence; OutOfRings when all are in use."""
        self.check_room(1)
        return self._free.pop()

    def release(self, ring: int) -> None:
        """Give a ring back; ValueError when it is free already."""
        if ring in self._free:
            raise ValueError(f"ring {ring} is given back twice; accepted: one that a sequence has")
        self._free.append(ring)
