"""Where a page keeps its tokens: a run of bytes that holds, layer after layer,

    | k_codes | k_scales | v_codes | v_scales |     each [num_key_value_heads, page_size, ...], from a multiple of 16 bytes on

so that whole pages are copied, counted and swapped as bytes, and a layer's codes are views of them.
"""

import torch

from ..side import Side

ALIGNED = 16  # bytes: the widest load of a kernel


def aligned(nbytes: int) -> int:
    """The next multiple of ALIGNED."""
    return -(-nbytes // ALIGNED) * ALIGNED


class PageLayout:
    """sides: per layer K's and V's Side. dtype: that of rows that are not packed."""

    def __init__(self, sides: dict[int, list[Side]], page_size: int, dtype: torch.dtype):
        self.page_size, self.nbytes, self._runs = page_size, 0, {}
        for layer, pair in sides.items():
            self._runs[layer] = [run for side in pair for run in self._side_runs(side, dtype)]

    def _side_runs(self, side, dtype):
        width, numbers, codes_dtype = side.row_sizes(dtype)
        for columns, kind in ((width, codes_dtype), (numbers, torch.float16)):
            yield self.nbytes, (side.heads, self.page_size, columns), kind
            self.nbytes += aligned(side.heads * self.page_size * columns * kind.itemsize)

    def views(self, pages: torch.Tensor, layer: int) -> list[torch.Tensor]:
        """A layer's k_codes, k_scales, v_codes, v_scales, each [pages, page_size, num_key_value_heads, ...].

        pages: uint8 [pages, bytes], of nbytes at least and a multiple of ALIGNED.
        """
        return [self._view(pages, *run) for run in self._runs[layer]]

    def _view(self, pages, offset, shape, kind):
        begin, length = offset // kind.itemsize, shape[0] * shape[1] * shape[2]
        return pages.view(kind)[:, begin : begin + length].unflatten(1, shape).transpose(1, 2)
