"""What it costs when the sequences of a batch move: Int4Cache against DynamicCache, bytes that copies write and milliseconds a layer.

    python bench/reorder.py --json bench/results/reorder-cpu.json --plot bench/results/reorder-cpu.png
    python bench/reorder.py --layout 28q4kv128 --beams 8 --tokens 4096

    reorder   beams of one prompt that have generated --parted tokens apart: in every step each stores one more of its own, then beam i
              goes on as beam_idx[i], drawn at random, the same draws for every contender
    select    all sequences but the last stay
    repeat    a prompt becomes as many sequences as there are beams

Keys and values are random. Bytes are counted in a run of their own, on the CPU as all of it. The caches are flushed before each call, and every call is made on a
cache of its own, or one that has changed since.
"""

import argparse
import copy
import itertools
from functools import partial

import timing  # before torch: it pins the threads
import options
import output
import torch
from copies import BytesWritten
from machine import about
from shapes import MODELS, parse_layout
from transformers import Qwen2Config
from transformers.cache_utils import DynamicCache

import int4kv
from int4kv.attention import NAME

CONTENDERS = {"int4kv": torch.float32, "dynamic_fp32": torch.float32, "dynamic_bf16": torch.bfloat16}
OPERATIONS = ("reorder", "select", "repeat")


def random_rows(layout, batch: int, tokens: int, dtype, generator) -> list[torch.Tensor]:
    """Keys and values of one layer, [batch, kv_heads, tokens, head_dim]."""
    return [torch.randn(batch, layout.kv_heads, tokens, layout.head_dim, generator=generator).to(dtype) for _ in "kv"]


def empty_cache(name: str, layout, arguments, tokens: int):
    config = Qwen2Config(num_hidden_layers=arguments.layers, num_attention_heads=layout.heads, num_key_value_heads=layout.kv_heads,
                         hidden_size=layout.heads * layout.head_dim, attn_implementation=NAME)
    if name.startswith("dynamic"):
        return DynamicCache(config=config)
    return int4kv.Int4Cache(config).expect(tokens + 1024)


def append(cache, layout, arguments, batch: int, tokens: int, dtype, seed: int, alike: bool = False) -> None:
    """Random tokens for every sequence, or the same ones for all."""
    generator = torch.Generator().manual_seed(seed)
    for layer in range(arguments.layers):
        rows = random_rows(layout, 1 if alike else batch, tokens, dtype, generator)
        cache.update(*[x.expand(batch, -1, -1, -1) for x in rows], layer)


def calls(operation: str, name: str, layout, tokens: int, arguments):
    """What is to be measured, one call after the other, without end."""
    beams, dtype = arguments.beams, CONTENDERS[name]
    cache, sequences = empty_cache(name, layout, arguments, tokens), 1 if operation == "repeat" else beams
    append(cache, layout, arguments, sequences, tokens, dtype, seed=0, alike=True)
    if operation == "reorder":
        append(cache, layout, arguments, beams, arguments.parted, dtype, seed=1)
    for step in itertools.count(2):
        if operation == "reorder":
            append(cache, layout, arguments, beams, 1, dtype, seed=step)
            drawn = torch.randint(beams, (beams,), generator=torch.Generator().manual_seed(step))
            yield partial(cache.reorder_cache, drawn)
        elif operation == "select":
            yield partial(copy.deepcopy(cache).batch_select_indices, torch.arange(beams - 1))
        else:
            yield partial(copy.deepcopy(cache).batch_repeat_interleave, beams)


def timer(waiting, clock):
    """A function that makes the next of the calls and returns its milliseconds."""
    def sample():
        return clock.timer([next(waiting)])()

    return sample


def bytes_written(waiting, rounds: int) -> dict:
    """Median and most of so many calls."""
    counts = []
    for call in itertools.islice(waiting, rounds):
        with BytesWritten() as written:
            call()
        counts.append(written.bytes)
    return dict(median=sorted(counts)[len(counts) // 2], most=max(counts))


def cell(operation: str, layout, tokens: int, clock, arguments) -> dict:
    """One operation on caches of so many tokens: per layer bytes and milliseconds, of every contender."""
    def waiting(name):
        return calls(operation, name, layout, tokens, arguments)

    found = timing.measure({name: timer(waiting(name), clock) for name in CONTENDERS}, arguments.rounds, warm_up_s=0.0)
    written = {name: bytes_written(waiting(name), arguments.rounds) for name in CONTENDERS}
    ms = {name: one["median"] / arguments.layers for name, one in found.items()}
    return dict(operation=operation, tokens=tokens, beams=arguments.beams, parted=arguments.parted, ms=ms,
                spread={name: [one["p10"] / arguments.layers, one["p90"] / arguments.layers] for name, one in found.items()},
                bytes={name: {kind: n / arguments.layers for kind, n in counts.items()} for name, counts in written.items()},
                rounds={name: one["rounds"] for name, one in found.items()}, stalled={name: one["stalled"] for name, one in found.items()},
                speedup_over={name: ms[name] / ms["int4kv"] for name in ms})


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 4096, 16384])
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--parted", type=int, default=64, help="tokens that the beams have generated apart")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--operation", choices=OPERATIONS, nargs="+", default=OPERATIONS)
    parser.add_argument("--layout", type=parse_layout, nargs="+", default=[MODELS["Qwen2.5-1.5B"]], help="like 12q2kv128, or a model's name")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own choice")
    parser.add_argument("--rounds", type=int, default=15)
    output.add_options(parser)
    return options.parse(parser)


@torch.inference_mode()
def main():
    arguments = parse()
    clock, rows = timing.clock_for("cpu"), []
    for layout in arguments.layout:
        for operation in arguments.operation:
            for tokens in arguments.tokens:
                shape = dict(benchmark="reorder", device="cpu", layout=str(layout), layers=arguments.layers)
                rows.append(shape | cell(operation, layout, tokens, clock, arguments) | dict(about=about("cpu")))
    output.finish(rows, arguments)


if __name__ == "__main__":
    main()
