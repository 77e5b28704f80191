"""The ops in plain PyTorch: the independent oracle of every backend, written for reading.

quantize, dequantize: bit-exact with the ops. attend: the whole score matrix at once, in the dtype asked for; the ops agree within
a tolerance. How a row becomes codes is in codebook.py.
"""

import torch

from .codebook import decode, encode
from .rotation import rotate, unrotate


def transform(x: torch.Tensor, centre: torch.Tensor | None, signs: torch.Tensor | None) -> torch.Tensor:
    """x [batch, heads, tokens, head_dim] of any dtype -> float32, centred ([batch or 1, heads, head_dim]) and rotated."""
    x = x.float()
    return rotate(x if centre is None else x - centre.unsqueeze(2), signs)


def quantize(x, codes, scales, position, *, centre=None, rotation=None, recent=None, codebook="uniform") -> None:
    """torch.ops.int4kv.quantize: token position + i of x goes to slot (position + i) % capacity."""
    rows = transform(x, centre, rotation)
    tokens = torch.arange(position, position + x.shape[2])
    slots = tokens % codes.shape[2]
    if codes.dtype == torch.uint8:
        head_dim, groups = x.shape[-1], scales.shape[-1] // (2 if codebook == "asymmetric" else 1)
        codes[:, :, slots], scales[:, :, slots] = encode(rows, head_dim // groups, codes.shape[-1] * 8 // head_dim, codebook)
    else:
        codes[:, :, slots] = rows.to(codes.dtype)
    if recent is not None:
        kept = tokens[-recent.shape[2] :]
        recent[:, :, kept % recent.shape[2]] = rows[:, :, -recent.shape[2] :].to(recent.dtype)


def dequantize(codes, scales, start, end, head_dim, *, centre=None, rotation=None, dtype=torch.float32, codebook="uniform"):
    """torch.ops.int4kv.dequantize: tokens start .. end -> [batch, heads, end - start, head_dim]."""
    x = unrotate(_stored(codes, scales, start, end, head_dim, codebook), rotation)
    return (x if centre is None else x + centre.unsqueeze(2)).to(dtype)


def _stored(codes, scales, start, end, head_dim, codebook="uniform"):
    slots = torch.arange(start, end) % codes.shape[2]
    rows = codes[:, :, slots]
    return decode(rows, scales[:, :, slots], head_dim, codebook) if codes.dtype == torch.uint8 else rows.float()


def _positions(queries, start, end):
    """Positions of the queries as a column, of the tokens as a row."""
    return torch.arange(end - queries, end).unsqueeze(1), torch.arange(start, end).unsqueeze(0)


def visible(queries, start, end, *, causal=True, window=0, mask=None) -> torch.Tensor:
    """Which token each query reads, bool broadcastable to [batch, num_heads, queries, end - start]."""
    p, t = _positions(queries, start, end)
    seen = torch.ones(queries, end - start, dtype=torch.bool)
    if causal:
        seen = seen & (t <= p)
    if window:
        seen = seen & (t > p - window)
    return seen if mask is None else seen & mask


def read_recent(queries, start, end, *, recent_start, recent_window) -> torch.Tensor:
    """Which of them it reads from the recent rows instead of codes, bool [queries, end - start]."""
    p, t = _positions(queries, start, end)
    return (t > p - recent_window) & (t >= recent_start) & (recent_window > 0)


def _softmax_rows(scores, seen):
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return weights.masked_fill(~seen.any(-1, keepdim=True), 0.0)


def _weighted(weights, seen, values):
    """weights @ values where a value that nobody sees cannot turn the sum into NaN."""
    broken = ~values.isfinite().all(-1)
    total = weights @ values.masked_fill(broken.unsqueeze(-1), 0.0)
    return total.masked_fill((seen & broken.unsqueeze(-2)).any(-1, keepdim=True), float("nan"))


def attend(
    q, k_codes, k_scales, v_codes, v_scales, start, end, scale, *, k_rotation=None, v_rotation=None, v_centre=None, k_recent=None,
    v_recent=None, recent_start=0, recent_window=0, k_sink=None, v_sink=None, mask=None, causal=True, window=0, softcap=0.0,
    codebook="uniform", dtype=torch.float32,
):
    """torch.ops.int4kv.attend: q [batch, num_heads, queries, head_dim]; query i stands at position end - queries + i.

    Tokens below the sinks' rows are read from those; else a token t is read from the recent rows where recent_start <= t and
    position - recent_window < t; else from codes.
    """
    group, queries, head_dim = q.shape[1] // k_codes.shape[1], *q.shape[2:]
    seen = visible(queries, start, end, causal=causal, window=window, mask=mask).expand(*q.shape[:3], end - start)
    recent = read_recent(queries, start, end, recent_start=recent_start, recent_window=0 if k_recent is None else recent_window)
    sunk = (torch.arange(start, end) < (0 if k_sink is None else k_sink.shape[2])).expand(recent.shape)
    recent = recent & ~sunk

    def heads(codes, scales):
        return _stored(codes, scales, start, end, head_dim, codebook).to(dtype).repeat_interleave(group, dim=1)

    sources = [(~recent & ~sunk, heads(k_codes, k_scales), heads(v_codes, v_scales))]
    sources += [(where, heads(k, None), heads(v, None)) for where, k, v in ((recent, k_recent, v_recent), (sunk, k_sink, v_sink)) if where.any()]
    rotated, scores = rotate(q.float(), _per_query_head(k_rotation, group)).to(dtype), 0.0
    for where, keys, _ in sources:
        scores = torch.where(where, rotated @ keys.transpose(-1, -2), scores)
    weights, out = _softmax_rows(_softcapped(scores * scale, softcap), seen), 0.0
    for where, _, values in sources:
        out = out + _weighted(weights * where, seen & where, values)
    out = unrotate(out.float(), _per_query_head(v_rotation, group))
    if v_centre is not None:
        out = out + v_centre.repeat_interleave(group, dim=1).unsqueeze(2) * seen.any(-1, keepdim=True)
    return out.to(q.dtype)


def _per_query_head(rotation, group):
    return rotation.repeat_interleave(group, dim=0) if rotation is not None and rotation.dim() == 3 else rotation


def _softcapped(scores, softcap):
    return softcap * torch.tanh(scores / softcap) if softcap else scores
