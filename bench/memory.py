"""Peak memory of prefill and decoding with each cache: of the whole process, not of some tensors.

    python bench/memory.py --json bench/results/memory-cpu.json --plot bench/results/memory-cpu.png
    python bench/memory.py --config "Qwen2.5-0.5B" --length 2048 32768 --layers 8

Each contender and length runs in a process of its own: the model is loaded, the peak is reset, a prompt of that length is prefilled,
the peak is read and reset, STEPS tokens are decoded, the peak is read again. Peaks are above what was resident with the model loaded.
On Linux the processes run with glibc's malloc told to return what is freed (RETURNING): by default it keeps up to some hundred MiB of freed
activations, more or less by chance, and what a cache holds is lost in that. --allocator default measures so nevertheless.

    cpu    resident memory: VmHWM of /proc/self/status, reset through /proc/self/clear_refs; where there is no /proc ru_maxrss, which
           cannot be reset, so that the peak of decoding is that of both
    mps    torch.mps.driver_allocated_memory: the driver keeps what it got, up to the peak, until its cache is emptied
    cuda   torch.cuda.max_memory_allocated
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import timing  # before torch: it pins the threads
import output
import torch
from baselines import CACHES, DTYPES, make_caches
from generate import PREFERRED, attending
from machine import about
from model_configs import CONFIGS, load, weight_bytes

from int4kv.naming import as_argument

CONTENDERS = ("dynamic", "static", "int4kv", "int4kv_growing")
STEPS = 8
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """VmRSS or VmHWM in bytes; both ru_maxrss where there is no /proc."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def held(device: str) -> int:
    """Bytes in use now."""
    if device == "mps":
        return torch.mps.current_allocated_memory()
    return torch.cuda.memory_allocated() if device == "cuda" else resident("VmRSS")


def peak(device: str) -> int:
    """Highest use since the last reset_peak."""
    if device == "mps":
        return torch.mps.driver_allocated_memory()
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")


def reset_peak(device: str) -> None:
    """Start again from what is held now."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif device == "mps":
        torch.mps.empty_cache()
    elif CLEAR.exists():
        CLEAR.write_text("5")


def prefill(model, cache, length: int, chunk: int) -> None:
    """Random tokens through the model, all at once or in chunks; only the last one's logits."""
    ids = torch.randint(5, model.config.get_text_config().vocab_size, (1, length), device=model.device)
    for part in ids.split(chunk or length, dim=1):
        model(part, **as_argument(cache), logits_to_keep=1)


def decode(model, cache) -> None:
    for _ in range(STEPS):
        model(torch.full((1, 1), 5, device=model.device), **as_argument(cache), use_cache=True)


def measure(name: str, contender: str, length: int, arguments) -> dict:
    """One row of the result, or why there is none, in the process that it is about."""
    model, device = load(name, DTYPES[arguments.dtype], arguments.device, arguments.layers or None, arguments.model), arguments.device
    caches, missing = make_caches([contender], model.config, length + STEPS)
    if missing:
        return dict(not_run=missing[contender])
    cache, peaks = caches[contender], {}
    with attending(model, CACHES[contender].attention):
        decode(model, make_caches([contender], model.config, length + STEPS)[0][contender])  # what is loaded on first use
        reset_peak(device)
        loaded = held(device)
        for phase, run in (("prefill", lambda: prefill(model, cache, length, arguments.chunk)), ("decode", lambda: decode(model, cache))):
            reset_peak(device)
            run()
            timing.synchronize(device)
            peaks[f"{phase}_peak_bytes"] = peak(device) - loaded
            peaks[f"after_{phase}_bytes"] = held(device) - loaded
    return peaks | dict(loaded_bytes=loaded, weight_bytes=weight_bytes(model))


def in_a_child(name: str, contender: str, length: int, given: list[str], environment: dict) -> dict:
    """measure() in a new process; what it says on failure is raised."""
    child = [sys.executable, __file__, *given, "--config", name, "--length", str(length), "--contenders", contender, "--child"]
    done = subprocess.run(child, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        raise RuntimeError(f"{contender} at {length} tokens ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compared(rows: list[dict]) -> None:
    """Adds to each row its peaks over those of transformers' own cache at the same length."""
    for row in rows:
        fp = next((r for r in rows if (r["contender"], r["length"], r["model"]) == ("dynamic", row["length"], row["model"])), None)
        if fp is not None:
            row |= {f"{phase}_over_dynamic": row[f"{phase}_peak_bytes"] / fp[f"{phase}_peak_bytes"] for phase in ("prefill", "decode")}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS, default="Qwen2.5-0.5B", help="the model, with random weights")
    parser.add_argument("--model", help="a folder with real weights, instead")
    parser.add_argument("--layers", type=int, default=8, help="cut the model to its first layers; 0: all of them")
    parser.add_argument("--length", type=int, nargs="+", default=[2048, 4096, 16384])
    parser.add_argument("--chunk", type=int, default=0, help="tokens prefilled at a time; 0: all at once")
    parser.add_argument("--contenders", nargs="+", choices=CACHES, default=CONTENDERS)
    parser.add_argument("--device", choices=PREFERRED, default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="of the model; default: fp32 on the CPU, fp16 on mps, bf16 on cuda")
    parser.add_argument("--allocator", choices=("returning", "default"), default="returning", help="what glibc's malloc does with freed memory")
    output.add_options(parser)
    parser.add_argument("--child", action="store_true", help="measure the one contender and length given, in this process")
    arguments = parser.parse_args()
    arguments.dtype = arguments.dtype or PREFERRED[arguments.device]
    return arguments


def passed_on(arguments) -> list[str]:
    """The options that a child needs beside its own."""
    named = {name: getattr(arguments, name) for name in ("model", "layers", "chunk", "device", "dtype")}
    return [text for name, value in named.items() if value is not None for text in (f"--{name}", str(value))]


def main():
    arguments = parse()
    if arguments.child:
        with torch.inference_mode():
            print(json.dumps(measure(arguments.config, arguments.contenders[0], arguments.length[0], arguments)))
        return
    facts, rows, name = about(arguments.device), [], arguments.config
    for length, contender in ((n, c) for n in arguments.length for c in arguments.contenders):
        found = in_a_child(name, contender, length, passed_on(arguments), RETURNING if arguments.allocator == "returning" else {})
        if "not_run" in found:
            print(f"{contender}: {found['not_run']}", file=sys.stderr)
            continue
        shape = {option: getattr(arguments, option) for option in ("device", "dtype", "layers", "chunk", "allocator")}
        shape |= dict(benchmark="memory", model=arguments.model or name, length=length, contender=contender)
        rows.append(shape | found | dict(about=facts))
    compared(rows)
    output.finish(rows, arguments)


if __name__ == "__main__":
    main()
