"""Decoding token by token through a quantised cache, simulated by one forward over a whole window.

Every query reads its own newest `recent` tokens and the first `sinks` tokens exactly, and all others as the recipe gives them back.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from int4kv import models
from int4kv.evaluation.evaluate import windows

NAME = "simulated"
QUERIES = 512  # rows of scores held at once
ROLLBACK = 32  # rows that the ring holds beside the newest ones


@dataclass(frozen=True)
class Recipe:
    """How a cache gives rows back: k and v map (layer index, float32 [heads, tokens, head_dim]) to the same shape.

    k_bits, v_bits: width of the codes (means over layers); row_bits: what a row holds besides, one fp16 scale by default.
    """

    k: Callable
    v: Callable
    k_bits: float = 4
    v_bits: float = 4
    row_bits: float = 16
    recent: int = 32
    sinks: int = 0

    def bits_per_value(self, head_dim: int, tokens: int = 4096) -> float:
        """Of keys and values of a full-attention layer: codes, scales, ring, sinks and K's centre."""
        ring = (self.recent + ROLLBACK) * (self.recent > 0)
        return (self.k_bits + self.v_bits) / 2 + self.row_bits / head_dim + 16 * (ring + self.sinks + 1) / tokens


class Simulator:
    """A bundled model whose attention reads keys and values as a recipe gives them back."""

    def __init__(self, name: str):
        self.name = name
        self.model, self.tokenizer = models.load(name, dtype=torch.float32)
        self.recipe, self.seen = None, None
        AttentionInterface.register(NAME, self.attention)
        AttentionMaskInterface.register(NAME, lambda *_, **__: None)
        self.model.set_attn_implementation(NAME)
        config = self.model.config
        self.head_dim, self.heads, self.layers = config.head_dim, config.num_key_value_heads, config.num_hidden_layers

    def attention(self, module, query, key, value, attention_mask, scaling=None, **_):
        """What transformers calls: one window, causal, sliding where the layer is."""
        query = query[0] * scaling
        if self.seen is not None:
            self.seen[module.layer_idx].append((query, key[0], value[0]))
        out = read(query, key[0], value[0], self.recipe, module.layer_idx, module.sliding_window or key.shape[2])
        return out.transpose(0, 1)[None], None

    @torch.inference_mode()
    def log_probabilities(self, ids: torch.Tensor, recipe: Recipe | None = None) -> torch.Tensor:
        """Of the next token after each of ids [tokens]: [tokens, vocabulary]; through the recipe, or exactly."""
        self.recipe = recipe
        return self.model(ids[None], use_cache=False).logits[0].float().log_softmax(-1)

    def observe(self, text: str, length: int, count: int) -> list:
        """Queries (scaled), keys and values of `count` windows of text: per layer three tensors [heads, tokens, head_dim]."""
        self.seen = [[] for _ in range(self.layers)]
        for ids in windows(self.tokenizer, text, length, count):
            self.log_probabilities(ids)
        seen, self.seen = self.seen, None
        return [tuple(torch.cat(parts, 1) for parts in zip(*layer)) for layer in seen]

    def divergence(self, ids: torch.Tensor, recipes: dict) -> dict:
        """Per recipe: KL [tokens] from the exact model's next-token distribution, and the relative change of perplexity's logarithm."""
        exact, target = self.log_probabilities(ids), ids[1:, None]
        found = {}
        for name, recipe in recipes.items():
            ours = self.log_probabilities(ids, recipe)
            found[name] = (exact.exp() * (exact - ours)).sum(-1), (exact - ours)[:-1].gather(1, target).mean()
        return found


def read(query, key, value, recipe, layer, window):
    """Attention of query [heads * group, tokens, head_dim] over key and value [heads, tokens, head_dim], by blocks of queries."""
    heads, tokens, head_dim = key.shape
    k, v = (key, value) if recipe is None else (recipe.k(layer, key), recipe.v(layer, value))
    if recipe is not None and recipe.sinks:
        k, v = (torch.cat([exact[:, : recipe.sinks], read[:, recipe.sinks :]], 1) for exact, read in ((key, k), (value, v)))
    missing, recent = (key - k, value - v), 0 if recipe is None else recipe.recent
    blocks = query.view(heads, -1, tokens, head_dim).split(QUERIES, dim=2)
    out = [_block(block, k, v, missing, i * QUERIES, window, recent) for i, block in enumerate(blocks)]
    return torch.cat(out, 2).flatten(0, 1)


def _block(query, k, v, missing, start, window, recent):
    """Queries [heads, group, rows, head_dim] from position `start` on. `missing` is what the codes lost: the newest tokens get it back."""
    heads, group, rows, head_dim = query.shape
    end, first = start + rows, max(0, start - window + 1)
    near = max(first, start - recent + 1)
    position, token = torch.arange(start, end)[:, None], torch.arange(first, end)
    newest = ((token > position - recent) & (token <= position))[:, near - first :].float()
    query = query.flatten(1, 2)
    scores = (query @ k[:, first:end].transpose(1, 2)).view(heads, group, rows, -1)
    scores[..., near - first :] += newest * (query @ missing[0][:, near:end].transpose(1, 2)).view(heads, group, rows, -1)
    weights = scores.masked_fill_((token > position) | (token <= position - window), -math.inf).softmax(-1)
    out = weights.flatten(1, 2) @ v[:, first:end] + (weights[..., near - first :] * newest).flatten(1, 2) @ missing[1][:, near:end]
    return out.view(heads, group, rows, head_dim)
