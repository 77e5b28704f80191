"""A model's queries, keys and values as its attention sees them (after RoPE), and their running moments."""

from contextlib import contextmanager
from contextvars import ContextVar

import torch
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from ..attention import int4kv_attention, int4kv_mask
from ..config import text_config
from ..patching import set_attention

NAME = "int4kv_observed"
_observer = ContextVar("observer")


def _observed_attention(module, query, key, value, *args, **kwargs):
    _observer.get()(module.layer_idx, query, key, value)
    return int4kv_attention(module, query, key, value, *args, **kwargs)


AttentionInterface.register(NAME, _observed_attention)
AttentionMaskInterface.register(NAME, int4kv_mask)


@contextmanager
def observed(model, observer):
    """Inside, observer(layer_idx, query, key, value) is called for every attention; the model is as it was afterwards.

    Run it with use_cache=False: then a sliding layer shows all its keys too, not only those that its cache would keep.
    """
    before, token = text_config(model.config)._attn_implementation, _observer.set(observer)
    try:
        set_attention(model, NAME)
        yield
    finally:
        set_attention(model, before)
        _observer.reset(token)


class Moments:
    """Mean and second moment of rows [heads, n, head_dim], added chunk by chunk in float64, and a sample of the rows."""

    def __init__(self, sample_every: int = 0):
        self.count, self.total, self.square = 0, 0.0, 0.0
        self.sample_every, self._sample = sample_every, []

    def add(self, rows: torch.Tensor) -> None:
        if self.sample_every:
            self._sample.append(rows[:, :: self.sample_every].float().cpu())
        rows = rows.cpu().double()
        self.count += rows.shape[1]
        self.total = self.total + rows.sum(1)
        self.square = self.square + rows.transpose(-1, -2) @ rows

    @property
    def mean(self) -> torch.Tensor:
        """float64 [heads, head_dim]."""
        return self.total / self.count

    def second_moment(self, centre: torch.Tensor | None = None) -> torch.Tensor:
        """E[(x - centre)(x - centre)^T], float64 [heads, head_dim, head_dim]."""
        square = self.square / self.count
        if centre is None:
            return square
        cross = self.mean.unsqueeze(-1) * centre.double().unsqueeze(-2)
        return square - cross - cross.transpose(-1, -2) + centre.double().unsqueeze(-1) * centre.double().unsqueeze(-2)

    def sample(self) -> torch.Tensor:
        """float32 [heads, n, head_dim]."""
        return torch.cat(self._sample, dim=1)


class LayerMoments:
    """Moments of one layer's keys, values and queries; the queries of a KV head count as its rows."""

    def __init__(self, sample_every: int = 0):
        self.k, self.v, self.q = Moments(sample_every), Moments(sample_every), Moments()

    def add(self, query, key, value) -> None:
        for moments, rows in ((self.k, key), (self.v, value), (self.q, query)):
            kv_heads = key.shape[1]
            moments.add(rows.transpose(0, 1).unflatten(0, (kv_heads, -1)).flatten(1, 3))


@torch.inference_mode()
def measure(model, texts, sample_every: int = 0, advance=lambda: None) -> list[LayerMoments]:
    """Moments of every layer over texts, token ids [1, tokens] each. advance() is called after each."""
    layers = [LayerMoments(sample_every) for _ in range(text_config(model.config).num_hidden_layers)]
    with observed(model, lambda layer_idx, *states: layers[layer_idx].add(*states)):
        for ids in texts:
            model(ids.to(model.device), use_cache=False)
            advance()
    return layers
