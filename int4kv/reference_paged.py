"""The paged ops in plain PyTorch: the pages of a sequence put side by side, then what reference.py does on a cache of its own.

Pages are [pages, page_size, num_key_value_heads, ...], rings [rings, rows, num_key_value_heads, head_dim]; one table of pages serves
keys and values (paged attention: arXiv 2309.06180).
"""

import torch

from . import reference


def _as_cache(rows: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, ...] <-> [1, heads, tokens, ...]."""
    return rows.transpose(0, 1).unsqueeze(0)


def _store(rows: torch.Tensor, slots: torch.Tensor, stored: torch.Tensor) -> None:
    """Row i of rows [1, heads, tokens, ...] to slot slots[i] of stored [pages, page_size, heads, ...]; -1: nowhere."""
    kept = slots >= 0
    page, offset = slots[kept] // stored.shape[1], slots[kept] % stored.shape[1]
    stored[page, offset] = rows[0].transpose(0, 1)[kept].to(stored.dtype)


def _quantize_side(x, codes, scales, slots, centre, rotation, recent, recent_slots, codebook) -> None:
    x, tokens = _as_cache(x), x.shape[0]
    written = [stored.new_zeros(1, x.shape[1], tokens, stored.shape[3]) for stored in (codes, scales)]
    reference.quantize(x, *written, 0, centre=centre, rotation=rotation, codebook=codebook)
    _store(written[0], slots, codes)
    _store(written[1], slots, scales)
    if recent is not None:
        _store(reference.transform(x, centre, rotation), recent_slots, recent)


def quantize_paged(
    k, v, k_codes, k_scales, v_codes, v_scales, slots, *, k_centre=None, v_centre=None, k_rotation=None, v_rotation=None,
    k_recent=None, v_recent=None, recent_slots=None, codebook="uniform",
) -> None:
    """torch.ops.int4kv.quantize_paged: token i of k and v [tokens, num_key_value_heads, head_dim] goes to slot slots[i].

    slots, int64 [tokens]: page * page_size + offset, -1 for a token that is not stored. recent_slots, likewise for the exact rows:
    ring * rows + position % rows. On the CPU a slot that does not exist, or two tokens in one, is a ValueError before anything is
    written. A GPU reads nothing back: a token without a slot is not written there, and which of two stays is not defined.
    """
    _quantize_side(k, k_codes, k_scales, slots, k_centre, k_rotation, k_recent, recent_slots, codebook)
    _quantize_side(v, v_codes, v_scales, slots, v_centre, v_rotation, v_recent, recent_slots, codebook)


def gather(stored: torch.Tensor, pages: torch.Tensor, length: int, first: int = 0) -> torch.Tensor:
    """Tokens 0 .. length of a sequence, [1, heads, length, ...], from its row of the block table; those before `first` are not read."""
    tokens = torch.arange(first, length)
    found = stored.new_zeros(length, *stored.shape[2:])
    found[first:] = stored[pages[tokens // stored.shape[1]], tokens % stored.shape[1]]
    return _as_cache(found)


def _attend_sequence(q, pages, length, sides, recents, ring, recent_start, recent_window, window, **options):
    """One sequence: q [queries, num_heads, head_dim] at the last of its `length` tokens."""
    queries, held = q.shape[0], {}
    first = max(length - queries - window + 1, 0) if window else 0
    if recents[0] is not None and ring >= 0:
        held = {name: _as_cache(rows[ring]) for name, rows in zip(("k_recent", "v_recent"), recents)}
        held |= dict(recent_start=recent_start, recent_window=recent_window)
    last = length if not held else min(max(recent_start, length - recent_window), length)
    whole = [torch.nn.functional.pad(gather(side, pages, last, min(first, last)), (0, 0, 0, length - last)) for side in sides]
    return reference.attend(_as_cache(q), *whole, 0, length, window=window, **held, **options)[0].transpose(0, 1)


def attend_paged(
    q, k_codes, k_scales, v_codes, v_scales, block_table, lengths, query_starts, max_queries, scale, *, k_rotation=None, v_rotation=None,
    v_centre=None, k_recent=None, v_recent=None, rings=None, recent_starts=None, recent_window=0, window=0, softcap=0.0,
    codebook="uniform", dtype=torch.float32,
):
    """torch.ops.int4kv.attend_paged: rows query_starts[s] .. query_starts[s + 1] of q [tokens, num_heads, head_dim] are of sequence s.

    They stand at the last of its lengths[s] tokens and attend causally; token t lies in page block_table[s, t // page_size]. Its newest
    tokens, from recent_starts[s] on, are exact in ring rings[s] (-1: it has none). All of these are int32. max_queries: no sequence
    has more. On the CPU a page, ring or length that does not exist is a ValueError that names it, and rows of no sequence are 0. A GPU
    reads nothing back: there it is some existing page or row that is read, and rows of no sequence are not defined.
    """
    out, starts = torch.zeros_like(q), query_starts.tolist()
    options = dict(k_rotation=k_rotation, v_rotation=v_rotation, v_centre=v_centre, softcap=softcap, codebook=codebook, dtype=dtype)
    for s, length in enumerate(lengths.tolist()):
        rows = slice(starts[s], starts[s + 1])
        if length == 0 or starts[s] == starts[s + 1]:
            continue
        ring, recent_start = (-1, 0) if rings is None else (int(rings[s]), int(recent_starts[s]))
        out[rows] = _attend_sequence(
            q[rows], block_table[s].long(), length, (k_codes, k_scales, v_codes, v_scales), (k_recent, v_recent), ring, recent_start,
            recent_window, window, scale=scale, **options)
    return out
