"""Layers of a cache on the device under test, filled with random keys and values."""

import torch
from devices import on_device

import int4kv
from int4kv.codebook import decode
from int4kv.layer import Int4Layer


def chunk(tokens, batch=1, heads=2, head_dim=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return on_device([torch.randn(batch, heads, tokens, head_dim, generator=generator) for _ in range(2)])


def layer(sliding_window=None, **overrides):
    return Int4Layer(int4kv.Int4KVConfig(**overrides), sliding_window=sliding_window)


@torch.no_grad()
def fill(target, k, v, sizes):
    """Update in chunks of these sizes, as generate does; returns what the last one hands out."""
    first = 0
    for n in sizes:
        handed = target.update(k[:, :, first : first + n], v[:, :, first : first + n])[0]
        first += n
    return handed


def stored_keys(target, first, end):
    codes, scales = target.codes.tensors[:2]
    slots = torch.arange(first, end) % target.codes.capacity
    return decode(codes.cpu()[:, :, slots], scales.cpu()[:, :, slots], target.head_dim, target.config.codebook)
