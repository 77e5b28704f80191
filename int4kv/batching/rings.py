"""Rings of exact rows in the memory of the pages, so that neither kind keeps room that the other needs.

    | page | page | page |  ...  free  ...  | ring of 4 sectors | ring of 4 sectors |
      a page: the first free sector           a ring: the last free run that is long enough

transformers hands its memory out in sectors, which allocators divide into blocks of pages.
"""

from bisect import insort

import torch
from transformers.generation.continuous_batching.cache_allocators import CachePool

from ..paging.rings import Rings


class SectorPool(CachePool):
    """transformers' pool, in order of place: single sectors from the front, runs of them from the back."""

    def allocate_sector(self, index):
        self._free_blocks[index].add_tree(self.free_sectors.pop(0))

    def try_to_free_sectors(self):
        super().try_to_free_sectors()
        self.free_sectors.sort()

    def take_run(self, length: int) -> int | None:
        """The first of so many sectors in a row, which are free no longer. None when there is no such run."""
        free = self.free_sectors
        for i in range(len(free) - length, -1, -1):
            if free[i + length - 1] - free[i] == length - 1:
                first = free[i]
                del free[i : i + length]
                return first
        return None

    def give_back_run(self, first: int, length: int) -> None:
        for sector in range(first, first + length):
            insort(self.free_sectors, sector)


class SectorRings(Rings):
    """A ring has the number of the sector that it begins with. memory: uint8, the pool's. shape: layers, heads, rows, head_dim of a ring."""

    def __init__(self, pool: SectorPool, memory: torch.Tensor, bytes_per_sector: int, layers: list[int], shape: tuple[int, int, int, int]):
        count, heads, rows, head_dim = shape
        self.pool, self.sectors = pool, sectors_of(self.nbytes_each(*shape), bytes_per_sector)
        one = torch.empty(count, 2, heads, rows, head_dim, device="meta")
        starts = len(memory) // bytes_per_sector - self.sectors + 1
        apart = bytes_per_sector // torch.float16.itemsize
        super().__init__(memory.view(torch.float16).as_strided((starts, *one.shape), (apart, *one.stride())), layers)

    def take(self) -> int | None:
        """A ring for a request that starts; None when there is no room."""
        return self.pool.take_run(self.sectors) if self.sectors else 0

    def release(self, ring: int) -> None:
        self.pool.give_back_run(ring, self.sectors)


def sectors_of(nbytes: int, bytes_per_sector: int) -> int:
    """How many sectors hold so many bytes."""
    return -(-nbytes // bytes_per_sector)
