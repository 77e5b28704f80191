"""Random keys and values behind quantize_kv, and attend over them against the reference in float64."""

import torch
from devices import DEVICE, TOLERANCE, on_cpu, on_device
from test_format import buffers

from int4kv import ops, reference
from int4kv.rotation import hadamard_signs


class Stored:
    """Random keys and values behind quantize_kv, tokens first .. end of a ring of the given capacity."""

    def __init__(self, batch, heads, head_dim, first, end, capacity, rows=0, group_size=None, seed=0, plain=False, logits=1.0,
                 bits=(4, 4), codebook="uniform", sinks=0, centred=False):
        generator = torch.Generator().manual_seed(seed)
        self.k, self.v = (torch.randn(batch, heads, end - first, head_dim, generator=generator) for _ in range(2))
        self.k, self.v = on_device((self.k * logits, self.v))
        self.signs, self.first, self.end = None if plain else hadamard_signs(head_dim, DEVICE), first, end
        self.k_side, self.v_side = (self._side(batch, heads, head_dim, capacity, rows, group_size, plain, b, codebook) for b in bits)
        self.v_centre = self.v.mean(2) if centred else None
        self.codebook, written = codebook, dict(k_rotation=self.signs, v_rotation=self.signs, v_centre=self.v_centre)
        recent = dict(k_recent=self.k_side[2], v_recent=self.v_side[2]) if rows else {}
        for t in range(first, end, capacity):
            piece = slice(t - first, min(t + capacity, end) - first)
            ops.quantize_kv(self.k[:, :, piece], self.v[:, :, piece], *self.sides, t, codebook=codebook, **written, **recent)
        self.options = written | dict(recent_start=max(first, end - rows) if rows else 0, codebook=codebook) | recent
        if sinks:
            self.options |= dict(zip(("k_sink", "v_sink"), self._first_rows(sinks, written)))

    def _first_rows(self, sinks, written):
        plain = [x.new_zeros(*x.shape[:2], sinks, x.shape[3]).half() for x in (self.k, self.v)]
        n = max(min(sinks - self.first, self.k.shape[2]), 0)
        none = plain[0][..., :0]
        ops.quantize_kv(self.k[:, :, :n], self.v[:, :, :n], plain[0], none, plain[1], none, self.first, **written)
        return plain

    def _side(self, batch, heads, head_dim, capacity, rows, group_size, plain, bits, codebook):
        side = buffers(batch, heads, capacity, head_dim, group_size, rows, bits, codebook)
        if plain:
            side[:2] = [torch.zeros(batch, heads, capacity, head_dim, device=DEVICE), side[1][..., :0]]
        return side

    @property
    def sides(self):
        return *self.k_side[:2], *self.v_side[:2]


def check(stored, q, start, end, scale=None, **options):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    options = stored.options | options
    ours = ops.attend(q, *stored.sides, start, end, scale, **options)
    assert ours.dtype == q.dtype and ours.shape == q.shape
    q, sides, options = on_cpu((q, stored.sides, options))
    exact_q = q.double() if q.dtype == torch.float32 else q
    exact = reference.attend(exact_q, *sides, start, end, scale, dtype=torch.float64, **options)
    assert_close(ours.cpu().double(), exact.double(), TOLERANCE[q.dtype])
    return ours


def assert_close(ours, exact, tolerance):
    assert torch.equal(ours.isnan(), exact.isnan())
    error = (ours - exact).abs().nan_to_num(0).max() / exact.abs().nan_to_num(0).max().clamp_min(1e-9)
    assert error < tolerance, error


def queries(*shape, seed=9, dtype=torch.float32):
    return on_device(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype))
