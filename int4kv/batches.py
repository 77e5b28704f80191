"""Sequences of a batch that move (beams), leave and multiply: what a layer copies then.

Beams of one prompt begin alike. A layer remembers for each two sequences how many first tokens they hold alike, so that a reorder
copies the codes behind these only: what was generated since the beams parted, not the prompt.

    before, 4 tokens beyond the prompt      beam_idx = [1, 1]: sequence 0 becomes what sequence 1 was
    0  |prompt==========|a b c d|           0  |prompt==========|a b x y|
    1  |prompt==========|a b x y|           1  |prompt==========|a b x y|       copied: x y of one sequence
                           ^ alike[0, 1]
"""

import torch

UNKNOWN = -1


def reorder(layer, beam_idx) -> None:
    """Sequence i becomes what sequence beam_idx[i] was, in place. Sequences that stay are not touched."""
    if layer.codes is None:
        return
    sources = rows_of("beam_idx", beam_idx, layer.batch_size)
    if len(sources) != layer.batch_size:
        return select(layer, sources)
    moved = [row for row, source in enumerate(sources) if row != source]
    if moved:
        origins = [sources[row] for row in moved]
        _copy(layer, moved, origins, min(_common_prefix(layer, *pair) for pair in zip(moved, origins)))
        layer.alike = _reordered(layer.alike, sources, layer.length)


def select(layer, indices) -> None:
    """Make these sequences the batch, in buffers of their own; a sequence may come more than once."""
    if layer.codes is None:
        return
    rows = torch.tensor(rows_of("indices", indices, layer.batch_size), device=layer.device, dtype=torch.long)
    for ring in _rings(layer):
        ring.select(rows, layer.length)
    if layer.early is not None:
        layer.early.real = layer.early.real.index_select(0, rows)
    layer.centres = [None if centre is None else centre.index_select(0, rows) for centre in layer.centres]
    layer.batch_size, layer.alike, layer.next = len(rows), None, None


def repeat(layer, repeats: int) -> None:
    """Every sequence `repeats` times, one behind the other."""
    check_repeats(repeats)
    if layer.codes is not None:
        select(layer, [row for row in range(layer.batch_size) for _ in range(repeats)])


def check_repeats(repeats) -> None:
    """Raise ValueError for anything but a count."""
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise ValueError(f"repeats is {repeats!r}; accepted: 1 or more")


def rows_of(name: str, indices, batch: int) -> list[int]:
    """Indices, negative ones or a bool mask [batch] as rows from 0. Raises ValueError for those that a batch does not have."""
    found = torch.as_tensor(indices)
    if found.dtype == torch.bool and found.shape == (batch,):
        found = found.nonzero().flatten()
    integers = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    rows = found.tolist() if found.dim() == 1 and (integers or found.numel() == 0) else None
    if rows is None or not all(-batch <= row < batch for row in rows):
        raise ValueError(f"{name} is {found.tolist()}; accepted: indices from {-batch} to {batch - 1}, or a bool mask [{batch}]: "
                         f"the cache holds {batch} sequences")
    return [row % batch for row in rows]


def _rings(layer):
    early = None if layer.early is None else layer.early.ring
    return [ring for ring in (layer.codes, layer.recent, layer.sink, early) if ring is not None]


def _copy(layer, moved, origins, first) -> None:
    """Codes from token `first` on; of the few exact rows, and of centres, all."""
    for ring in _rings(layer):
        ring.copy_rows(moved, origins, first if ring is layer.codes else 0, layer.length)
    per_sequence = [centre for centre in layer.centres if centre is not None and centre.stride(0)]  # a calibrated one is all sequences'
    for held in per_sequence + ([] if layer.early is None else [layer.early.real]):
        held[moved] = held[origins]


def _common_prefix(layer, row: int, other: int) -> int:
    if layer.alike is None:
        layer.alike = torch.full((layer.batch_size, layer.batch_size), UNKNOWN)
    if layer.alike[row, other] == UNKNOWN:
        layer.alike[row, other] = layer.alike[other, row] = _compared(layer, row, other)
    return int(layer.alike[row, other])


def _compared(layer, row, other) -> int:
    """First tokens of two sequences whose codes and scales are the same, bit for bit: the longest such prefix, by bisection."""
    start, end = layer.codes.start, layer.length
    pairs = [(t[row].view(torch.uint8), t[other].view(torch.uint8)) for t in layer.codes.tokens(start, end)]
    low, high = start, end  # the same up to low; not beyond high
    while low < high:
        middle = (low + high + 1) // 2
        tokens = slice(low - start, middle - start)
        same = all(torch.equal(mine[:, tokens], its[:, tokens]) for mine, its in pairs)
        low, high = (middle, high) if same else (low, middle - 1)
    return low


def _reordered(alike, sources, length):
    """[i, j] of sequences that were sources[i] and sources[j]: as much as these, and all where they are the same one."""
    rows = torch.tensor(sources)
    return alike[rows][:, rows].masked_fill(rows[:, None] == rows[None, :], length)
