"""Run as a process of its own: prints by how many bytes the resident peak rises while a cache is filled.

    python tests/peak_memory.py model int4kv 4096      a small model reads a prompt and writes 8 tokens
    python tests/peak_memory.py grow dynamic 20000     layers take keys and values in chunks, then token by token
    python tests/peak_memory.py chunk int4kv 32768     256 queries attend to so many packed tokens
"""

import resource
import sys
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache

import int4kv
from int4kv.attention import attend_chunk
from int4kv.naming import as_argument

LAYERS, HEADS, HEAD_DIM, CHUNK = 12, 2, 128, 256


def peak() -> int:
    """Most bytes that this process ever had resident. On Linux ru_maxrss begins with the parent's, so it is not asked there."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def model_config(layers=LAYERS):
    return Qwen2Config(vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=HEADS,
                       num_key_value_heads=HEADS, head_dim=HEAD_DIM, max_position_embeddings=65536)


def make_cache(kind, config):
    return DynamicCache() if kind == "dynamic" else int4kv.Int4Cache(config)


def generating(kind):
    """A call that reads a prompt of n tokens and writes 8 more."""
    model = Qwen2ForCausalLM(model_config()).eval()
    if kind == "int4kv":
        int4kv.patch(model)

    def run(tokens):
        cache = make_cache(kind, model.config)
        ids = torch.randint(300, (1, tokens))
        for _ in range(9):
            ids = model(ids, **as_argument(cache), logits_to_keep=1).logits[:, -1:].argmax(-1)
        return cache

    return run


def packed_config(layers=LAYERS):
    """A config under whose attention an Int4Cache hands out chunks, not dense tensors."""
    config = model_config(layers)
    config._attn_implementation = "int4kv"
    return config


def growing(kind):
    """A call that fills every layer with n tokens in chunks, the last few of them one by one."""

    def run(tokens):
        cache = make_cache(kind, packed_config())
        for n in [CHUNK] * (tokens // CHUNK) + [1] * 8:
            k, v = (torch.randn(1, HEADS, n, HEAD_DIM) for _ in range(2))
            for i in range(LAYERS):
                cache.update(k, v, i)
        return cache

    return run


def attending(kind):
    """A call in which 256 queries attend to what one layer holds; filling it is part of the setup."""
    layer = make_cache(kind, packed_config(1)).layers[0]

    def run(tokens):
        while layer.length + CHUNK <= tokens:
            rows = torch.randn(1, HEADS, CHUNK, HEAD_DIM)
            chunk = layer.update(rows, rows)[0]
        before = peak()
        attend_chunk(torch.randn(1, 2 * HEADS, CHUNK, HEAD_DIM), chunk, None, HEAD_DIM**-0.5)
        return before

    return run


def main(what, kind, tokens):
    torch.set_num_threads(1)
    run = dict(model=generating, grow=growing, chunk=attending)[what](kind)
    with torch.inference_mode():
        run(CHUNK)
        before = peak()
        filled = run(int(tokens))
    print(peak() - (filled if what == "chunk" else before))


if __name__ == "__main__":
    main(*sys.argv[1:])
