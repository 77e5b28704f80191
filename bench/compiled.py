"""Whole decode steps, eager and compiled: Int4Cache, Int4StaticCache, transformers' StaticCache and DynamicCache, token by token.

    python bench/compiled.py --json bench/results/compiled-cpu.json
    python bench/compiled.py --device cuda --model Qwen2.5-0.5B Qwen2.5-1.5B --json bench/results/compiled-cuda.json

Contenders take turns by single tokens, the order reversed every other round, on caches of one random prompt. Compiled: torch.compile of
the model's forward, fullgraph=True; the seconds of its first call are in brackets, fewer where inductor finds its work of before on the disk.
A step is one forward, from token to logits: wall-clock time, and the processor time of all threads, which other work on the machine disturbs less.
"""

import argparse
import copy
import json
import sys
import time
from pathlib import Path

import timing  # before torch: it pins the threads
import torch
from machine import about
from model_configs import CONFIGS, load
from rich.console import Console
from rich.table import Table
from torch._dynamo.utils import counters
from transformers.cache_utils import DynamicCache, StaticCache

import int4kv
from int4kv import models
from int4kv.naming import as_argument

ATTENTION = {"dynamic": "sdpa", "static": "sdpa", "static, compiled": "sdpa",
             "int4kv": "int4kv", "int4kv static": "int4kv", "int4kv static, compiled": "int4kv"}


def make_cache(name: str, config, capacity: int):
    """An empty cache for a contender."""
    if name == "dynamic":
        return DynamicCache(config=config)
    if name.startswith("static"):
        return StaticCache(config=config, max_cache_len=capacity)
    return int4kv.Int4Cache(config).expect(capacity) if name == "int4kv" else int4kv.Int4StaticCache(config, capacity)


def two_models(model) -> dict:
    """{attention: model}, the second patched, on the same weights: so that no switch of one makes the other compile again."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    return {"sdpa": model, "int4kv": int4kv.patch(copy.deepcopy(model, shared))}


def contender(name: str, model, prompt, capacity: int, cpu: list):
    """A function that decodes one token behind the prompt and returns its milliseconds; those of processor time go to the list."""
    cache, token = make_cache(name, model.config, capacity), torch.full((1, 1), 5, device=model.device)
    model(prompt, **as_argument(cache), logits_to_keep=1)
    forward = torch.compile(model.forward, fullgraph=True) if name.endswith("compiled") else model

    def sample():
        begin, busy = time.perf_counter(), time.process_time()
        forward(input_ids=token, **as_argument(cache), use_cache=True)
        timing.synchronize(model.device.type)
        cpu.append(1e3 * (time.process_time() - busy))
        return 1e3 * (time.perf_counter() - begin)

    return sample


def cell(name: str, model, prefix: int, rounds: int) -> dict:
    """One row of the result: a prefix with every contender."""
    prompt = torch.randint(5, model.config.vocab_size, (1, prefix), generator=torch.Generator().manual_seed(0)).to(model.device)
    capacity, by_attention = prefix + 3 + (timing.RERUNS + 1) * rounds, two_models(model)
    torch._dynamo.reset()
    counters.clear()
    cpu = {each: [] for each in ATTENTION}
    timers = {each: contender(each, by_attention[attention], prompt, capacity, cpu[each]) for each, attention in ATTENTION.items()}
    first = {each: timer() / 1e3 for each, timer in timers.items() if each.endswith("compiled")}
    found = timing.measure(timers, rounds, warm_up_s=0.0)
    return dict(benchmark="compiled", device=model.device.type, model=name, layers=model.config.num_hidden_layers, prefix=prefix,
                ms={each: spread["median"] for each, spread in found.items()}, first_call_s=first,
                cpu_ms={each: timing.spread(times[-rounds:]) for each, times in cpu.items()},
                spread={each: [spread["p10"], spread["p90"]] for each, spread in found.items()},
                rounds={each: spread["rounds"] for each, spread in found.items()}, graphs=counters["stats"]["unique_graphs"],
                compiled_over={each: timing.paired_ratio(found[each]["samples"], found["int4kv static, compiled"]["samples"])
                               for each in found})


def show(rows: list[dict]) -> None:
    """Median milliseconds per token, wall-clock and processor time, and, for what is compiled, the seconds of its first call."""
    table = Table("model", "prefix", *ATTENTION, "graphs")
    for row in rows:
        first = row["first_call_s"]
        cells = [f"{row['ms'][name]:.1f} / {row['cpu_ms'][name]['median']:.1f}" + (f" ({first[name]:.0f} s)" if name in first else "") for name in ATTENTION]
        table.add_row(row["model"], str(row["prefix"]), *cells, str(row["graphs"]))
    Console(width=160).print(table)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=(*models.NAMES, *CONFIGS), default=["tiny-qwen2", "Qwen2.5-0.5B"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="float32 on the CPU, float16 on a GPU")
    parser.add_argument("--layers", type=int, help="cut models with random weights to their first layers")
    parser.add_argument("--prefix", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path, help="write the rows here, a list")
    return parser.parse_args()


@torch.no_grad()
def main():
    arguments, rows = parse(), []
    for name in arguments.model:
        bundled = str(models.path(name)) if name in models.NAMES else None
        model = load(name, torch.float32 if arguments.device == "cpu" else torch.float16, arguments.device, arguments.layers, bundled)
        for prefix in arguments.prefix:
            rows.append(cell(name, model, prefix, arguments.rounds) | dict(about=about(arguments.device)))
            print(f"{name}, {prefix}: {rows[-1]['ms']}, first {rows[-1]['first_call_s']}", file=sys.stderr)
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
