"""One decode step of attention: torch.ops.int4kv.attend as the cache calls it, against torch's SDPA on preallocated fp keys and values.

    python bench/attend.py --json bench/results/attend-cpu.json --plot bench/results/attend-cpu.png
    python bench/attend.py --layout 12q2kv128 --keys 4096 --batch 1

A row of the JSON is one cell: medians in milliseconds (their spread apart), the ratio to the fastest SDPA of all and to the fastest with
enable_gqa=True, what the packed cache has in bytes, and the floors that the machine sets, measured in the same run. bench/README.md
says how it is timed.
"""

import argparse
import sys
from functools import partial

import timing  # before torch: it pins the threads
import options
import output
import torch
from baselines import DTYPES, gqa_names, sdpa_contenders
from machine import about
from shapes import KEYS
from torch.utils._pytree import tree_map_only

import int4kv
from int4kv import ops
from int4kv.layer import Int4Layer


def stored_chunk(k, v, config):
    """What a cache layer hands to attention after these keys and values, the last of them a decode step's."""
    layer = Int4Layer(config)
    layer.expected_length = k.shape[2]
    layer.update(k[:, :, :-1], v[:, :, :-1])
    return layer.update(k[:, :, -1:], v[:, :, -1:])[0]


def attend_arguments(q, chunk) -> tuple[list, dict]:
    """Those that int4kv's attention function gives to the op for a decode step without a mask."""
    named = dict(chunk.options, recent_start=0 if chunk.recent is None else chunk.recent.start)
    return [q, *chunk.codes.tensors, chunk.start, chunk.end, q.shape[-1] ** -0.5], named


def packed_bytes(chunk) -> int:
    """Codes and scales of all keys, and the exact rows that a query reads."""
    rows = sum(t[:, :, : chunk.end].nbytes for t in chunk.codes.tensors)
    window = min(chunk.options.get("recent_window", 0), chunk.end)
    return rows + sum(t[:, :, :window].nbytes for t in chunk.recent.tensors) if window else rows


def packed_contender(q, chunk, clock) -> list:
    """Calls of the op on as many copies of its inputs as the clock cycles through."""
    positional, named = attend_arguments(q, chunk)
    calls = [partial(ops.attend, *positional, **named)]
    for _ in range(clock.copies(packed_bytes(chunk)) - 1):
        copied = tree_map_only(torch.Tensor, torch.clone, (positional, named))
        calls.append(partial(ops.attend, *copied[0], **copied[1]))
    return calls


def inputs(layout, keys: int, batch: int, device: str) -> list[torch.Tensor]:
    """q [batch, heads, 1, head_dim], k and v [batch, kv_heads, keys, head_dim]: standard normal, the same every time."""
    torch.manual_seed(0)
    shapes = ((batch, layout.heads, 1), (batch, layout.kv_heads, keys), (batch, layout.kv_heads, keys))
    return [torch.randn(*shape, layout.head_dim, device=device, dtype=torch.float32 if device == "cpu" else torch.float16) for shape in shapes]


def cell(layout, keys: int, batch: int, config, clock, arguments, floors: dict) -> dict:
    """One row of the result."""
    q, k, v = inputs(layout, keys, batch, arguments.device)
    chunk = stored_chunk(k, v, config)
    contenders = {"int4kv": packed_contender(q.to(DTYPES[arguments.dtype]), chunk, clock)} | sdpa_contenders(q, k, v, clock)
    found = timing.measure({name: clock.timer(calls) for name, calls in contenders.items()}, arguments.rounds)
    shape = dict(benchmark="attend", device=arguments.device, layout=str(layout), keys=keys, batch=batch)
    shape |= dict(codebook=config.codebook, bits=config.bits, recent=config.recent, q_dtype=arguments.dtype)
    return shape | ratios(found) | roofline(packed_bytes(chunk), layout.flops(keys, batch), found["int4kv"]["median"], floors)


def ratios(found: dict) -> dict:
    """Times apart from their spread, and what follows from them."""
    medians = {name: spread["median"] for name, spread in found.items()}
    ours = medians.pop("int4kv")
    best = min(medians, key=medians.get)
    gqa = min(medians[name] for name in gqa_names(medians))
    return dict(int4kv_ms=ours, baselines_ms=medians, best=best, speedup_over_best=medians[best] / ours, speedup_over_gqa=gqa / ours,
                spread={name: [s["p10"], s["p90"]] for name, s in found.items()}, rounds={name: s["rounds"] for name, s in found.items()},
                reruns=found["int4kv"]["reruns"], stalled=[name for name, s in found.items() if s["stalled"]])


def roofline(nbytes: int, flops: int, ms: float, floors: dict) -> dict:
    """Bytes and operations of the packed call, and the milliseconds under which the machine's memory and arithmetic do not let it."""
    bytes_ms, flops_ms = nbytes / floors["read_gb_s"] / 1e6, flops / floors["gflop_s"] / 1e6
    return dict(packed_bytes=nbytes, packed_gb_s=nbytes / ms / 1e6, share_of_read_bandwidth=bytes_ms / ms, flops=flops,
                bytes_floor_ms=bytes_ms, flops_floor_ms=flops_ms, **floors)


def measured_floors(device: str) -> dict:
    """Read bandwidth, and the rate of a matrix product in the dtype that a kernel here would use at best."""
    return dict(read_gb_s=timing.read_bandwidth(device),
                gflop_s=timing.arithmetic_rate(device, torch.float32 if device == "cpu" else torch.float16))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="+", default=KEYS)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--recent", type=int, default=32, help="newest tokens read exactly")
    parser.add_argument("--dtype", choices=DTYPES, help="of int4kv's q; default: fp32 on the CPU, else fp16")
    options.add_options(parser)
    return options.parse(parser)


@torch.inference_mode()
def main():
    arguments = parse()
    arguments.dtype = arguments.dtype or ("fp32" if arguments.device == "cpu" else "fp16")
    config = int4kv.Int4KVConfig(codebook=arguments.codebook, bits=arguments.bits, recent=arguments.recent)
    clock, floors, facts = timing.clock_for(arguments.device), measured_floors(arguments.device), about(arguments.device)
    rows = []
    for layout, batch, keys in ((x, b, n) for x in arguments.layout for b in arguments.batch for n in arguments.keys):
        rows.append(cell(layout, keys, batch, config, clock, arguments, floors) | dict(about=facts))
        print(f"{layout} {keys} keys, batch {batch}: {rows[-1]['int4kv_ms']:.4g} ms, {rows[-1]['speedup_over_best']:.2f}x", file=sys.stderr)
    output.finish(rows, arguments)


if __name__ == "__main__":
    main()
