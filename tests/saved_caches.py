"""Caches that a model fills, and two of them fed alike: what tests of saved ones share."""

import torch
from tiny_models import random_ids

import int4kv
from int4kv.naming import as_argument


@torch.no_grad()
def forward(model, ids, cache, mask=None):
    return model(ids, **as_argument(cache), attention_mask=mask, use_cache=True).logits


def filled(model, ids, mask=None, config=None):
    cache = int4kv.Int4Cache(model.config, config or model._int4kv.config)
    forward(model, ids, cache, mask)
    return cache


def check_same_future(model, cache, loaded, mask=None, steps=(1, 1, 40, 1, 1)):
    """Both caches, fed the same: the same logits and the same bytes held, with crops between."""
    total = cache.get_seq_length()
    for turn, tokens in enumerate(steps):
        ids, total = random_ids(cache.batch_size, tokens, seed=10 + turn), total + tokens
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), tokens)], 1)
        assert torch.equal(forward(model, ids, cache, mask), forward(model, ids, loaded, mask)), f"step {turn}"
        if turn == 1:
            cache.crop(-3)
            loaded.crop(-3)
            total -= 3
            mask = None if mask is None else mask[:, :-3]
    assert total == loaded.get_seq_length()
