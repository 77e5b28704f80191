"""One decode step of attention: torch.ops.int4kv.attend against torch's SDPA on fp16, bf16 and fp32 keys and values.

    OMP_PROC_BIND=true python bench/attend.py --json bench/results/attend-cpu.json

Every contender runs in turn, with the caches flushed before each call as a real step's weights would do; medians and the
10th to 90th percentile of 25 rounds. Two forms of SDPA: enable_gqa=True, and q viewed as [batch, kv_heads, group, head_dim],
which is the same maths and faster. The ratio is against the best of all six.
"""

import argparse
import json
import time

import torch
from machine import facts
from torch.nn.functional import scaled_dot_product_attention as sdpa

from int4kv import ops
from int4kv.rotation import hadamard_signs

SHAPES = {"Qwen2.5-1.5B": (12, 2, 128), "Qwen2.5-7B": (28, 4, 128), "Gemma-3 1B": (4, 1, 256)}
CONTEXTS = (1024, 4096, 16384, 65536)
ROUNDS = 25
FLUSH = torch.zeros(64 * 2**20 // 4)


def packed_call(q, k, v, kv_heads, head_dim, tokens):
    sides = []
    for _ in range(2):
        sides += [torch.zeros(1, kv_heads, tokens, head_dim // 2, dtype=torch.uint8), torch.zeros(1, kv_heads, tokens, 1, dtype=torch.float16)]
    signs = hadamard_signs(head_dim)
    recipe = dict(k_rotation=signs, v_rotation=signs, codebook="lloyd")
    ops.quantize_kv(k, v, *sides, 0, **recipe)
    return lambda: ops.attend(q, *sides, 0, tokens, head_dim**-0.5, **recipe)


def contenders(heads, kv_heads, head_dim, tokens):
    q = torch.randn(1, heads, 1, head_dim)
    k, v = (torch.randn(1, kv_heads, tokens, head_dim) for _ in range(2))
    calls = {"int4kv": packed_call(q, k, v, kv_heads, head_dim, tokens)}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x, y, z = (t.to(dtype) for t in (q, k, v))
        grouped = x.view(1, kv_heads, heads // kv_heads, head_dim)
        name = str(dtype).removeprefix("torch.")
        calls[f"sdpa gqa {name}"] = lambda x=x, y=y, z=z: sdpa(x, y, z, enable_gqa=True)
        calls[f"sdpa grouped {name}"] = lambda x=grouped, y=y, z=z: sdpa(x, y, z)
    return calls


def measure(calls):
    times = {name: [] for name in calls}
    for _ in range(ROUNDS + 2):
        for name, call in calls.items():
            FLUSH.add_(1.0)
            begin = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - begin))
    ordered = {name: sorted(t[2:]) for name, t in times.items()}
    return {name: dict(median=t[ROUNDS // 2], p10=t[ROUNDS // 10], p90=t[-1 - ROUNDS // 10]) for name, t in ordered.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    arguments = parser.parse_args()
    results = dict(facts(), command="OMP_PROC_BIND=true python bench/attend.py", unit="ms", rows=[])
    print(f"{'shape':14} {'tokens':>6} {'int4kv ms':>20} {'best SDPA ms':>34} {'ratio':>6}")
    for shape, sizes in SHAPES.items():
        for tokens in arguments.contexts:
            times = measure(contenders(*sizes, tokens))
            best = min((name for name in times if name != "int4kv"), key=lambda name: times[name]["median"])
            ours, theirs = times["int4kv"], times[best]
            ratio = theirs["median"] / ours["median"]
            results["rows"].append(dict(shape=shape, tokens=tokens, best=best, ratio=ratio, times=times))
            show = lambda t: f"{t['median']:.3f} ({t['p10']:.3f}-{t['p90']:.3f})"  # noqa: E731
            print(f"{shape:14} {tokens:>6} {show(ours):>20} {best.removeprefix('sdpa '):>12} {show(theirs):>21} {ratio:>6.2f}", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
