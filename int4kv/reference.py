"""The ops in plain PyTorch: the independent oracle of every backend, written for reading.

encode, decode: codes and scales bit-exact with the ops (format.h states the arithmetic and its order).
attend: the whole score matrix at once, in the dtype asked for; the ops agree within a tolerance.
"""

import torch

from .rotation import rotate, unrotate

UNIT = 32
CLIP_STEP = torch.tensor(0.85) / torch.tensor(7.5)
TINY = 1e-30


def pack(codes: torch.Tensor) -> torch.Tensor:
    """uint8 codes [..., head_dim] -> bytes [..., head_dim / 2]; channel i low and i + 16 high, in units of 32."""
    units = codes.unflatten(-1, (-1, 2, UNIT // 2))
    return (units[..., 0, :] | (units[..., 1, :] << 4)).flatten(-2)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of pack."""
    units = packed.unflatten(-1, (-1, UNIT // 2))
    return torch.stack([units & 15, units >> 4], dim=-2).flatten(-3)


def lane_sum(y: torch.Tensor) -> torch.Tensor:
    """Sum over the last dimension in the format's order: 32 lanes, then folds 16, 8, 4, 2, 1 apart."""
    units = y.unflatten(-1, (-1, UNIT))
    lanes = units[..., 0, :]
    for u in range(1, units.shape[-2]):
        lanes = lanes + units[..., u, :]
    half = UNIT // 2
    while half:
        lanes, half = lanes[..., :half] + lanes[..., half : 2 * half], half // 2
    return lanes[..., 0]


def encode(x: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [..., head_dim], centred and rotated -> (packed uint8 [..., head_dim / 2], fp16 scales [..., groups])."""
    groups = x.unflatten(-1, (-1, group_size))
    broken = ~groups.isfinite().all(-1, keepdim=True)
    groups = groups.masked_fill(broken, 0.0)
    largest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest < TINY, 0.0, 1.0 / (largest * CLIP_STEP))
    codes = (groups * inverse + 8.0).floor().clamp(0, 15)
    odd = 2.0 * codes - 15.0
    scales = 2.0 * lane_sum(groups * odd) / (odd * odd).sum(-1)
    scales = torch.where(inverse[..., 0] == 0.0, 0.0, scales).half()
    scales = scales.masked_fill(broken[..., 0] | ~scales.isfinite(), float("nan"))
    return pack(codes.to(torch.uint8).flatten(-2)), scales


def decode(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Packed bytes and scales -> float32 [..., head_dim], still centred and rotated."""
    levels = unpack(packed).float() - 7.5
    groups = levels.unflatten(-1, (scales.shape[-1], -1))
    return (groups * scales.float().unsqueeze(-1)).flatten(-2)


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
        codes[:, :, slots], scales[:, :, slots] = encode(rows, x.shape[-1] // scales.shape[-1])
    else:
        codes[:, :, slots] = rows.to(codes.dtype)
    if recent is not None:
        kept = tokens[-recent.shape[2] :]
        recent[:, :, kept % recent.shape[2]] = rows[:, :, -recent.shape[2] :].to(recent.dtype)


def dequantize(codes, scales, start, end, head_dim, *, centre=None, rotation=None, dtype=torch.float32, codebook="uniform"):
    """torch.ops.int4kv.dequantize: tokens start .. end -> [batch, heads, end - start, head_dim]."""
    x = unrotate(_stored(codes, scales, start, end), rotation)
    return (x if centre is None else x + centre.unsqueeze(2)).to(dtype)


def _stored(codes, scales, start, end):
    slots = torch.arange(start, end) % codes.shape[2]
    rows = codes[:, :, slots]
    return decode(rows, scales[:, :, slots]) if codes.dtype == torch.uint8 else rows.float()


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


def read_exactly(queries, start, end, *, recent_start, recent_window) -> torch.Tensor:
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
    q, k_codes, k_scales, v_codes, v_scales, start, end, scale, *, k_rotation=None, v_rotation=None, k_recent=None,
    v_recent=None, recent_start=0, recent_window=0, mask=None, causal=True, window=0, softcap=0.0, codebook="uniform",
    dtype=torch.float32,
):
    """torch.ops.int4kv.attend: q [batch, num_heads, queries, head_dim]; query i stands at position end - queries + i.

    A token t is read exactly (from the recent rows) where recent_start <= t and position - recent_window < t, else from codes.
    """
    group, queries = q.shape[1] // k_codes.shape[1], q.shape[2]
    seen = visible(queries, start, end, causal=causal, window=window, mask=mask).expand(*q.shape[:3], end - start)
    exact = read_exactly(queries, start, end, recent_start=recent_start, recent_window=0 if k_recent is None else recent_window)

    def heads(codes, scales):
        return _stored(codes, scales, start, end).to(dtype).repeat_interleave(group, dim=1)

    rotated = rotate(q.float(), _per_query_head(k_rotation, group)).to(dtype)
    scores = rotated @ heads(k_codes, k_scales).transpose(-1, -2)
    if exact.any():
        scores = torch.where(exact, rotated @ heads(k_recent, None).transpose(-1, -2), scores)
    weights = _softmax_rows(_softcapped(scores * scale, softcap), seen)
    out = _weighted(weights * ~exact, seen & ~exact, heads(v_codes, v_scales))
    if exact.any():
        out = out + _weighted(weights * exact, seen & exact, heads(v_recent, None))
    return unrotate(out.float(), _per_query_head(v_rotation, group)).to(q.dtype)


def _per_query_head(rotation, group):
    return rotation.repeat_interleave(group, dim=0) if rotation is not None and rotation.dim() == 3 else rotation


def _softcapped(scores, softcap):
    return softcap * torch.tanh(scores / softcap) if softcap else scores
