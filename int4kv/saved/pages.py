"""A sequence of a PagePool as the layers of a file, and back: its rows are gathered from their pages, and put into free ones."""

import torch

from ..paging import PagePool
from ..paging.pool import Sequence
from .layers import RINGS, check_rows


def describe(pool: PagePool, sequence: Sequence, layer_idx: int, dtype: torch.dtype) -> tuple[dict, dict]:
    """What layers.describe() gives for a contiguous layer with the same tokens, on the CPU. dtype: the model's."""
    layer, length = pool.layers[layer_idx], sequence.length
    unpacked = layer.stored[0].dtype != torch.uint8
    numbers = {"length": length, "shape": [1, *pool.signature[:2]], "dtype": str(layer.stored[0].dtype if unpacked else dtype), "rings": {}}
    tensors = {f"{'kv'[which]}_centre": centre for which, centre in enumerate(layer.centres) if centre is not None}
    for name, start in _starts(pool, sequence, layer).items():
        numbers["rings"][name] = {"start": start, "capacity": length - start}
        rows, places = _places(pool, sequence, layer, name, start)
        tensors |= zip(RINGS[name], [_as_batch(t[places]) for t in rows])
    return numbers, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def restore(pool: PagePool, numbers: list[dict], tensors: list[dict]) -> Sequence:
    """A new sequence of what describe() gave for every layer. ValueError, OutOfPages or OutOfRings, with nothing changed, where it does not fit."""
    length = numbers[0]["length"]
    for i, one in enumerate(numbers):
        _check(pool, i, one, tensors[i])
    starts = [numbers[group.layers[0]]["rings"]["codes"]["start"] for group in pool.groups]
    held_from = [max(start, group.seen_from(length)) for start, group in zip(starts, pool.groups)]
    recent = max((one["rings"]["recent"]["start"] for one in numbers if "recent" in one["rings"]), default=length)
    sequence = pool.place(length, held_from, max(recent, length - pool.rings.rows))
    with torch.inference_mode(False), torch.no_grad():  # pages and centres outlive the mode they are made in
        for layer, held in zip(pool.layers, tensors):
            _write(pool, sequence, layer, held)
    return sequence


def _starts(pool, sequence, layer) -> dict[str, int]:
    """The first token of the codes, and of the exact rows where there are any."""
    found = {"codes": pool.groups[layer.group].held_from(sequence.tables[layer.group], sequence.length)}
    return found if layer.rings is None else found | {"recent": pool.recent_start(sequence)}


def _places(pool, sequence, layer, name, first):
    """(tensors [pages, page_size, ...] or [rings, rows, ...], indices) of tokens first .. length."""
    tokens = torch.arange(first, sequence.length, device=pool.device)
    if name == "recent":
        return layer.rings, (sequence.ring, tokens % pool.rings.rows)
    table = torch.tensor(sequence.tables[layer.group].by_token(), device=pool.device)
    return layer.stored, (table[tokens // pool.page_size], tokens % pool.page_size)


def _as_batch(rows):
    """[tokens, heads, ...] -> [1, heads, tokens, ...]."""
    return rows.transpose(0, 1).unsqueeze(0)


def _check(pool, i, numbers, tensors):
    layer, length, (heads, head_dim, _) = pool.layers[i], numbers["length"], pool.signature
    if numbers["shape"][0] != 1:
        raise ValueError(f"the file holds {numbers['shape'][0]} sequences; accepted with a pool: 1, whose tokens are none of them padding")
    for name, rows in (("codes", layer.stored), ("recent", layer.rings)):
        tokens = length - numbers["rings"][name]["start"] if rows is not None else 0
        for part, mine in zip(RINGS[name], rows or ()):
            check_rows(part, i, tensors[part], mine.dtype, [1, heads, tokens, mine.shape[3]])
    for which, side in enumerate(layer.sides):
        if side.centre_kind is not None:
            name = f"{'kv'[which]}_centre"
            check_rows(name, i, tensors[name], torch.float32, [1, heads, head_dim])
            _check_centre(pool, i, name, layer.centres[which], tensors[name])


def _check_centre(pool, i, name, mine, its):
    in_use = pool.rings.free < pool.rings.count
    if mine is not None and in_use and not torch.equal(mine.cpu(), its):
        raise ValueError(f"{name} of layer {i} is not the pool's, which its first sequence gave to all; accepted: the same one, as a "
                         "calibrated centre is, or a pool that no sequence is in")


def _write(pool, sequence, layer, tensors):
    for which, side in enumerate(layer.sides):
        if side.centre_kind == "prompt":
            layer.centres[which] = tensors[f"{'kv'[which]}_centre"].to(pool.device)
    for name, first in _starts(pool, sequence, layer).items():
        rows, places = _places(pool, sequence, layer, name, first)
        for part, mine in zip(RINGS[name], rows):
            newest = tensors[part][0, :, tensors[part].shape[2] - (sequence.length - first) :]
            mine[places] = newest.transpose(0, 1).to(pool.device)
