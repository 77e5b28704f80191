"""What it costs to store keys and values: torch.ops.int4kv.quantize_kv as the cache calls it.

    python bench/quantize.py --json bench/results/quantize-cpu.json

One token (a decode step; K and V of all heads of a layer, with the ring of exact rows): microseconds a call; those of the same call
with no token, which has the dispatch and the checks but no row; and the difference, which is the kernel. Both are means of CALLS calls
in a row, hot, as the token's rows are when they come from a projection; the slot written moves on with every call.
More tokens (prefill): one cold call against a copy of the same keys and values, interleaved; the ratio is the share of memcpy's speed.
"""

import argparse
from functools import partial

import timing  # before torch: it pins the threads
import options
import output
import torch
from attend import stored_chunk
from baselines import DTYPES
from machine import about

import int4kv
from int4kv import ops

CALLS = 200
SLOTS = 4096  # tokens that the buffers hold in the one-token case


def keys_values(layout, tokens: int, batch: int, device: str, dtype) -> tuple:
    """Standard normal k and v [batch, kv_heads, tokens, head_dim]."""
    torch.manual_seed(0)
    return tuple(torch.randn(batch, layout.kv_heads, tokens, layout.head_dim).to(device, dtype) for _ in range(2))


def stored_arguments(chunk) -> tuple[list, dict]:
    """The buffers and options that the cache gives to quantize_kv beside k, v and the position."""
    return chunk.codes.tensors, chunk.layer.next.write


def one_token(layout, batch: int, dtype, config, clock, arguments) -> dict:
    """Microseconds of a call with one token, with none, and of the kernel between them."""
    k, v = keys_values(layout, SLOTS, batch, arguments.device, dtype)
    buffers, named = stored_arguments(stored_chunk(k, v, config))
    timers = {}
    for name, tokens in (("call", 1), ("empty", 0)):
        new = k[:, :, :tokens].contiguous(), v[:, :, :tokens].contiguous()
        calls = [partial(ops.quantize_kv, *new, *buffers, position, **named) for position in range(CALLS)]
        timers[name] = clock.timer(calls) if arguments.device == "cuda" else timing.in_a_row(calls, arguments.device)
    found = timing.measure(timers, arguments.rounds)
    us = {name: 1e3 * spread["median"] for name, spread in found.items()}
    return dict(tokens=1, call_us=us["call"], empty_call_us=us["empty"], kernel_us=us["call"] - us["empty"],
                spread_us={name: [1e3 * s["p10"], 1e3 * s["p90"]] for name, s in found.items()})


def prefill(layout, tokens: int, batch: int, dtype, config, clock, arguments) -> dict:
    """Milliseconds of a cold call with many tokens and of a copy of them, and the ratio."""
    k, v = keys_values(layout, tokens, batch, arguments.device, dtype)
    buffers, named = stored_arguments(stored_chunk(k, v, config))
    copies = clock.copies(k.nbytes + v.nbytes)
    sets = [(k.clone(), v.clone()) for _ in range(copies)]
    targets = [(torch.empty_like(k), torch.empty_like(v)) for _ in range(copies)]
    calls = {"int4kv": [partial(ops.quantize_kv, *new, *buffers, 0, **named) for new in sets],
             "memcpy": [partial(copy_both, target, new) for target, new in zip(targets, sets)]}
    found = timing.measure({name: clock.timer(each) for name, each in calls.items()}, arguments.rounds)
    ours, copied = found["int4kv"]["median"], found["memcpy"]["median"]
    rows = 2 * batch * layout.kv_heads * tokens
    return dict(tokens=tokens, int4kv_ms=ours, memcpy_ms=copied, share_of_memcpy=copied / ours, ns_per_row=1e6 * ours / rows,
                input_gb_s=(k.nbytes + v.nbytes) / ours / 1e6, spread={name: [s["p10"], s["p90"]] for name, s in found.items()})


def copy_both(targets, sources) -> None:
    for target, source in zip(targets, sources):
        target.copy_(source)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 256, 4096, 16384])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", help="of keys and values; default: fp32 and bf16 on the CPU, else fp16")
    options.add_options(parser)
    return options.parse(parser)


@torch.inference_mode()
def main():
    arguments = parse()
    config = int4kv.Int4KVConfig(codebook=arguments.codebook, bits=arguments.bits)
    clock, facts, rows = timing.clock_for(arguments.device), about(arguments.device), []
    names = arguments.dtype or (["fp32", "bf16"] if arguments.device == "cpu" else ["fp16"])
    for layout, tokens, name in ((x, n, d) for x in arguments.layout for n in arguments.tokens for d in names):
        shape = dict(benchmark="quantize", device=arguments.device, layout=str(layout), batch=arguments.batch, dtype=name)
        shape |= dict(codebook=config.codebook, bits=config.bits)
        shared = (arguments.batch, DTYPES[name], config, clock, arguments)
        found = one_token(layout, *shared) if tokens == 1 else prefill(layout, tokens, *shared)
        rows.append(shape | found | dict(about=facts))
    output.finish(rows, arguments)


if __name__ == "__main__":
    main()
