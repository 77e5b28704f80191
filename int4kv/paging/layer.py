"""One layer over pages: stores the tokens of a step, attends to what is stored.

The centre is one for all sequences, or what one of them wrote would not be what another reads: calibrated, or fixed by the first sequence
that comes. Exact in theory whatever it is (int4kv.centre), and in practice one of another text does as well.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

from .. import ops
from ..centre import first_real_centre
from ..config import Int4KVConfig
from ..side import K, Side, V, sides_of
from .batch import CHUNK, FRESH, Call, Step
from .rings import RingShape


def plan_layers(
    config: Int4KVConfig, count: int, heads: int, head_dim: int, device, rollback: int
) -> tuple[list[Int4KVConfig], list[list[Side]], RingShape]:
    """What pages and rings are made by: every layer's config, its K and V, and the shape of a ring. rollback: tokens that a crop takes back."""
    configs = [config.for_layer(i, count) for i in range(count)]
    sides = [sides_of(one, i, heads, head_dim, device) for i, one in enumerate(configs)]
    return configs, sides, RingShape.of(configs, heads, head_dim, rollback)


class PagedLayer:
    """config: that of the layer. stored: k_codes, k_scales, v_codes, v_scales, each [pages, page_size, num_key_value_heads, ...].

    group: which of a span's tables is its own. window: how far it sees, None for all. rings: exact keys and values, each
    [rings, rows, num_key_value_heads, head_dim], or None.
    """

    def __init__(self, config, sides, stored: list[torch.Tensor], group: int, window: int | None, rings: list[torch.Tensor] | None):
        self.config, self.sides, self.stored, self.group, self.window, self.rings = config, sides, stored, group, window or 0, rings
        calibrated = [side.centre_kind == "calibrated" for side in sides]
        self.centres = [side.calibrated_centre(1) if known else None for side, known in zip(sides, calibrated)]

    def store(self, k: torch.Tensor, v: torch.Tensor, step: Step) -> "PagedChunk":
        """Write keys and values of a step, [tokens, num_key_value_heads, head_dim], into the pages of their sequences."""
        if self.config.check_finite and not (k.isfinite().all() and v.isfinite().all()):
            raise ValueError("key_states or value_states has NaN or infinity; accepted: finite values")
        with torch.inference_mode(False), torch.no_grad():  # pages and centres outlive the mode they are made in
            self._settle_centres(k, v, step)
            return PagedChunk(self, k, v, step, [self._store_call(k[call.tokens], v[call.tokens], call) for call in step.calls])

    def _settle_centres(self, k, v, step):
        first = slice(min(step.spans[0].tokens, self.config.centre_tokens))
        for which, rows in ((K, k), (V, v)):
            if self.sides[which].centre_kind == "prompt" and self.centres[which] is None and len(rows):
                real = torch.ones(1, len(rows[first]), dtype=torch.bool, device=rows.device)
                self.centres[which] = first_real_centre(rows[first].transpose(0, 1).unsqueeze(0), real, self.config.centre_tokens)

    def _store_call(self, k, v, call):
        """Returns what the call's queries read exactly: the rings, or a chunk's own rows."""
        wide = self._wide_ring(call) if call.kind == CHUNK else None
        rings, slots = (self.rings, call.recent_slots) if wide is None else (wide.rows, wide.slots)
        ops.quantize_paged(k, v, *self.stored, call.slots[self.group], k_centre=self.centres[K], v_centre=self.centres[V],
                           k_rotation=self.sides[K].rotation.write, v_rotation=self.sides[V].rotation.write,
                           codebook=self.config.codebook, **_exact_rows(rings, slots))
        if wide is not None and self.rings is not None:
            wide.copy_newest(self.rings)
        return wide

    def _wide_ring(self, call):
        exact = self.config.prefill == "exact" and not self.config.is_exact
        rows = self.config.recent + call.spans[0].tokens
        return WideRing(self, call.spans[0], rows, rows if exact else self.config.recent) if exact or self.rings is not None else None

    def attend(self, q, call: Call, wide, scaling: float, softcap: float | None) -> torch.Tensor:
        """Attention of a call's queries [tokens, num_heads, head_dim] over what its sequences store."""
        rings, options = self.rings, dict(rings=call.rings, recent_starts=call.recent_starts, recent_window=self.config.recent)
        if wide is not None:
            rings, options = wide.rows, wide.options
        exact = {} if rings is None else dict(k_recent=rings[K], v_recent=rings[V], **options)
        return ops.attend_paged(
            q, *self.stored, call.tables[self.group], call.lengths, call.query_starts, call.max_queries, scaling,
            k_rotation=self.sides[K].rotation.read, v_rotation=self.sides[V].rotation.read, v_centre=self.centres[V], window=self.window,
            softcap=softcap or 0.0, codebook=self.config.codebook, **exact)


class WideRing:
    """A ring for the time of a chunk: what its queries read exactly would not fit into the sequence's own.

    window: how many newest tokens each query reads exactly.
    """

    def __init__(self, layer: PagedLayer, span, rows: int, window: int):
        stored = layer.stored[0]
        self.span, self.rows_each = span, rows
        shape = 1, rows, stored.shape[2], layer.sides[K].head_dim
        self.rows = [torch.zeros(shape, dtype=torch.float16, device=stored.device) for _ in "kv"]
        self.first = span.begin
        if layer.rings is not None:
            self.first = max(span.recent_start, span.begin - min(layer.config.recent, layer.rings[K].shape[1]))
            self._copy(layer.rings, span.ring, self.rows, 0, self.first, span.begin)
        self.slots = torch.arange(span.begin, span.end, device=stored.device) % rows
        numbers = [torch.tensor([x], dtype=torch.int32, device=stored.device) for x in (0, self.first)]
        self.options = dict(rings=numbers[0], recent_starts=numbers[1], recent_window=window)

    def copy_newest(self, rings) -> None:
        """The newest rows go into the sequence's own ring."""
        self._copy(self.rows, 0, rings, self.span.ring, max(self.first, self.span.end - rings[K].shape[1]), self.span.end)

    def _copy(self, sources, source_ring, targets, target_ring, first, end):
        tokens = torch.arange(first, end, device=sources[K].device)
        for source, target in zip(sources, targets):
            target[target_ring, tokens % target.shape[1]] = source[source_ring, tokens % source.shape[1]]


class PagedChunk:
    """What a layer stored of a step, for the queries of the same step."""

    def __init__(self, layer: PagedLayer, k, v, step: Step, wide: list):
        self.layer, self.k, self.v, self.step, self.wide = layer, k, v, step, wide

    def attend(self, q: torch.Tensor, scaling: float, softcap: float | None = None) -> torch.Tensor:
        """q [tokens, num_heads, head_dim] -> like q."""
        out = torch.zeros_like(q)
        for call, wide in zip(self.step.calls, self.wide):
            if call.kind == FRESH:
                out[call.tokens] = self._among_themselves(q[call.tokens], call, scaling, softcap)
            else:
                out[call.tokens] = self.layer.attend(q[call.tokens], call, wide, scaling, softcap)
        return out

    def _among_themselves(self, q, call, scaling, softcap):
        sizes = [span.tokens for span in call.spans]
        parts = zip(*(x.split(sizes) for x in (q, self.k[call.tokens], self.v[call.tokens])))
        return torch.cat([exact_attention(*part, scaling, softcap, self.layer.window) for part in parts])


def exact_attention(q, k, v, scaling, softcap, window) -> torch.Tensor:
    """Causal attention of a sequence's first tokens, [tokens, heads, head_dim] each, over themselves."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    tokens = q.shape[2]
    if softcap:
        out = ops.attend_plain(q, k, v, scaling, softcap=softcap, window=window)
    else:
        seen = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril().triu(1 - window) if 0 < window < tokens else None
        out = scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None, scale=scaling, enable_gqa=True)
    return out[0].transpose(0, 1)


def _exact_rows(rings, slots):
    return {} if rings is None else dict(k_recent=rings[K], v_recent=rings[V], recent_slots=slots)
