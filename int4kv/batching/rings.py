"""Rings of exact rows in the memory of the pages, so that neither kind keeps room that the other needs.

    | page | page | page |  ...  free  ...  | ring of 4 sectors | ring of 4 sectors |
      a page: the first free sector           a ring: the last free run that is long enough

transformers hands its memory out in sectors, which allocators divide into blocks of pages.
"""

from bisect import bisect

import torch
from transformers.generation.continuous_batching.cache_allocators import CachePool

from ..paging.rings import Rings, RingShape


class SectorPool(CachePool):
    """transformers' pool, its free sectors from the last to the first: single ones are taken from the front of the memory, runs from its back."""

    def reset(self):
        super().reset()
        self.free_sectors.reverse()

    def try_to_free_sectors(self):
        before = len(self.free_sectors)
        super().try_to_free_sectors()
        if len(self.free_sectors) > before:
            self.free_sectors.sort(reverse=True)

    def take_run(self, length: int) -> int | None:
        """The first of so many sectors in a row, which are free no longer. None when there is no such run."""
        free = self.free_sectors
        for i in range(len(free) - length + 1):
            if free[i] - free[i + length - 1] == length - 1:
                first = free[i + length - 1]
                del free[i : i + length]
                return first
        return None

    def give_back_run(self, first: int, length: int) -> None:
        place = bisect(self.free_sectors, -first, key=lambda sector: -sector)
        self.free_sectors[place:place] = range(first + length - 1, first - 1, -1)


class SectorRings(Rings):
    """A ring has the number of the sector that it begins with. memory: uint8, the pool's."""

    def __init__(self, pool: SectorPool, memory: torch.Tensor, bytes_per_sector: int, shape: RingShape):
        self.pool, self.sectors = pool, sectors_of(shape.nbytes, bytes_per_sector)
        one = torch.empty(shape.dimensions, device="meta")
        starts = len(memory) // bytes_per_sector - self.sectors + 1
        apart = bytes_per_sector // torch.float16.itemsize
        super().__init__(memory.view(torch.float16).as_strided((starts, *one.shape), (apart, *one.stride())), shape.layers)

    def take(self) -> int | None:
        """A ring for a request that starts; None when there is no room."""
        return self.pool.take_run(self.sectors) if self.sectors else 0

    def release(self, ring: int) -> None:
        self.pool.give_back_run(ring, self.sectors)


def sectors_of(nbytes: int, bytes_per_sector: int) -> int:
    """How many sectors hold so many bytes."""
    return -(-nbytes // bytes_per_sector)
