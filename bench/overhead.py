"""What a decode step costs around its kernels, per layer: Int4Cache and int4kv attention against DynamicCache and sdpa attention.

    OMP_NUM_THREADS=1 python bench/overhead.py --json bench/results/overhead.json

One token goes through update and the attention function, as a model's attention module calls them.
Python: the step with torch.cat, SDPA, quantize_kv and attend replaced by functions that return an earlier result, so that arguments,
checks, bookkeeping and views are left. Dispatch: those calls themselves, with as little to do as they accept: no new tokens, no queries;
one key and one query for SDPA, which takes a slower way without. Rounds of 200 steps, the contenders in turn, CPU time: the least round,
which leaves out what other processes do to one, median and 10th to 90th percentile over rounds. Bytecodes are counted.
"""

import argparse
import json
import sys
import time
from contextlib import contextmanager

import torch
from machine import facts
from torch.nn import functional
from transformers import Qwen2Config
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import int4kv
from int4kv import ops
from int4kv.attention import int4kv_attention

LAYOUTS = {"4q2kv64": (4, 2, 64), "14q2kv64": (14, 2, 64), "12q2kv128": (12, 2, 128)}
KERNELS = ((torch, "cat"), (functional, "scaled_dot_product_attention"), (ops, "quantize_kv"), (ops, "attend"))
CONTEXT, STEPS, ROUNDS = 128, 200, 41


class Step:
    """One layer's decode step behind a cache of CONTEXT tokens."""

    def __init__(self, layout, make_cache, attention):
        heads, kv_heads, head_dim = LAYOUTS[layout]
        config = Qwen2Config(hidden_size=heads * head_dim, num_attention_heads=heads, num_key_value_heads=kv_heads, num_hidden_layers=1)
        config._attn_implementation = "int4kv"
        self.cache, self.attention = make_cache(config), attention
        self.module = torch.nn.Module()
        self.module.is_causal, self.module.num_key_value_groups = True, heads // kv_heads
        self.q = torch.randn(1, heads, 1, head_dim)
        self.k, self.v = (torch.randn(1, kv_heads, 1, head_dim) for _ in range(2))
        self.scaling = head_dim**-0.5
        self.cache.update(*(torch.randn(1, kv_heads, CONTEXT, head_dim) for _ in range(2)), 0)

    def __call__(self):
        keys, values = self.cache.update(self.k, self.v, 0)
        return self.attention(self.module, self.q, keys, values, None, dropout=0.0, scaling=self.scaling, sliding_window=None)


def contenders(layout):
    ours = Step(layout, lambda config: int4kv.Int4Cache(config).expect(CONTEXT + (STEPS + 1) * (ROUNDS + 1)), int4kv_attention)
    return {"Int4Cache, int4kv": ours, "DynamicCache, sdpa": Step(layout, lambda config: DynamicCache(), sdpa_attention_forward)}


class StandIn:
    """Instead of a kernel: the result of its first call, again and again."""

    def __init__(self, kernel):
        self.kernel, self.first = kernel, None

    def __call__(self, *args, **kwargs):
        if self.first is None:
            self.first = self.kernel(*args, **kwargs), args, kwargs
        return self.first[0]


@contextmanager
def stand_ins():
    """Puts one in place of every kernel; yields them."""
    found = [StandIn(getattr(module, name)) for module, name in KERNELS]
    try:
        for (module, name), stand_in in zip(KERNELS, found):
            setattr(module, name, stand_in)
        yield found
    finally:
        for (module, name), stand_in in zip(KERNELS, found):
            setattr(module, name, stand_in.kernel)


def smallest(name, args, kwargs):
    """The arguments of a kernel's call with as little to do as it accepts."""
    if name == "cat":
        return ([args[0][0], args[0][1][:, :, :0]],), kwargs
    if name == "quantize_kv":
        return (args[0][:, :, :0], args[1][:, :, :0], *args[2:]), kwargs
    if name == "attend":
        return (args[0][:, :, :0], *args[1:]), kwargs
    return (args[0], args[1][:, :, :1], args[2][:, :, :1]), kwargs


def dispatched(found):
    """One function that makes a step's kernel calls: DynamicCache concatenates twice."""
    calls = [(stand_in.kernel, *smallest(name, *stand_in.first[1:])) for (_, name), stand_in in zip(KERNELS, found) if stand_in.first]
    calls += [call for call in calls if call[0] is torch.cat]

    def make_calls():
        for kernel, args, kwargs in calls:
            kernel(*args, **kwargs)

    return make_calls


def bytecodes(step) -> int:
    """Python bytecodes of one step, in every frame below it."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        step()
    finally:
        sys.settrace(None)
    return count


def timed(call, count=STEPS) -> float:
    """Microseconds of CPU time that one of `count` calls takes."""
    begin = time.thread_time_ns()
    for _ in range(count):
        call()
    return (time.thread_time_ns() - begin) / count / 1e3


def measure(steps):
    """name -> times of Python and dispatch, and bytecodes."""
    counted = {name: bytecodes(step) for name, step in steps.items()}
    times = {name: dict(python=[], dispatch=[]) for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            with stand_ins() as found:
                step()  # the one that the kernels run in
                times[name]["python"].append(timed(step))
            times[name]["dispatch"].append(timed(dispatched(found)))
    return {name: dict(bytecodes=counted[name], **{part: spread(t) for part, t in parts.items()}) for name, parts in times.items()}


def spread(times):
    ordered = sorted(times)
    return dict(least=ordered[0], median=ordered[len(ordered) // 2], p10=ordered[len(ordered) // 10], p90=ordered[-1 - len(ordered) // 10])


def table(rows):
    show = lambda t: f"{t['least']:.1f}; {t['median']:.1f} ({t['p10']:.1f}-{t['p90']:.1f})"  # noqa: E731
    lines = ["| layout | cache and attention | Python | dispatch | both | bytecodes |", "|---|---|---|---|---|---|"]
    for layout, found in rows.items():
        for name, r in found.items():
            both = r["python"]["least"] + r["dispatch"]["least"]
            lines.append(f"| {layout} | {name} | {show(r['python'])} | {show(r['dispatch'])} | {both:.1f} | {r['bytecodes']} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        rows = {layout: measure(contenders(layout)) for layout in arguments.layout}
    print(table(rows))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(dict(facts(), command="OMP_NUM_THREADS=1 python bench/overhead.py", unit="us of CPU time", rows=rows), file, indent=1)


if __name__ == "__main__":
    main()
