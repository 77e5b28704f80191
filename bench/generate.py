"""Whole decode steps of a model with each kind of cache, token by token: milliseconds end to end, and how much of it is the cache's.

    python bench/generate.py --json bench/results/generate-cpu.json --plot bench/results/generate-cpu.png
    python bench/generate.py --model path/to/model --prefill 16384
    python bench/generate.py --config "Qwen2.5-0.5B" --layers 2 --prefix 256

Contenders take turns by single tokens, the order reversed every other round, each on its own cache of the same rows. Those come from one
prefill with a fp cache, --prefill tokens long; a longer prefix has the same rows again: a step's time does not depend on what they are.
end to end: one forward, from token to logits. cache and attention: the part of a step inside cache.update and the attention function, from
other steps after those, so that the clock is not inside what is compared. int4kv is model = int4kv.patch(model), as generate() uses it.

The last columns are the table of arXiv 2605.05699 (Apple M1, fp16, change in ms per token against the fp cache) beside ours.
"""

import argparse
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import timing  # before torch: it pins the threads
import output
import torch
from baselines import CACHES, DTYPES, make_caches
from machine import about
from model_configs import CONFIGS, load, weight_bytes
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

import int4kv
from int4kv.naming import as_argument

CONTENDERS = ("dynamic", "static", "preallocated", "preallocated_grouped", "quanto", "hqq", "int4kv")
FP = ("dynamic", "static", "preallocated", "preallocated_grouped")
# On the CPU a stock model is at its best in fp32: SDPA with enable_gqa=True takes 2 to 10 times as long in bf16 and fp16.
PREFERRED = {"cpu": "fp32", "mps": "fp16", "cuda": "bf16"}
CHUNK = 512
INSIDE_STEPS = 3


@contextmanager
def attending(model, attention: str):
    """The model with an attention implementation; "int4kv" is the patched model."""
    if attention == "int4kv":
        with int4kv.patched(model):
            yield
    else:
        model.set_attn_implementation(attention)
        yield


def prefix_rows(model, tokens: int) -> list[tuple]:
    """Keys and values of every layer, all tokens of sliding layers too: one prefill of random tokens in chunks."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.get_text_config().vocab_size, (1, tokens), generator=generator).to(model.device)
    cache = DynamicCache()  # without a config nothing slides out of it
    for chunk in ids.split(CHUNK, dim=1):
        model(chunk, **as_argument(cache), logits_to_keep=1)
    return [(layer.keys, layer.values) for layer in cache.layers]


def fill(cache, rows: list[tuple], prefix: int) -> None:
    """Put a prefix of so many tokens into a cache, repeating the rows where they are fewer."""
    for layer_idx, (k, v) in enumerate(rows):
        index = torch.arange(prefix, device=k.device) % k.shape[2]
        cache.update(k[:, :, index], v[:, :, index], layer_idx)


def step_timer(model, cache, attention: str):
    """A function that decodes one token and returns its milliseconds; switching the attention is not in them."""
    token, device = torch.full((1, 1), 5, device=model.device), model.device.type

    def sample():
        with attending(model, attention):
            timing.synchronize(device)
            begin = time.perf_counter()
            model(token, **as_argument(cache), use_cache=True)
            timing.synchronize(device)
            return 1e3 * (time.perf_counter() - begin)

    return sample


def clocked(function, times: list, device: str):
    """The function, its seconds appended to times."""
    def call(*args, **kwargs):
        timing.synchronize(device)
        begin = time.perf_counter()
        result = function(*args, **kwargs)
        timing.synchronize(device)
        times.append(time.perf_counter() - begin)
        return result

    return call


def inside_ms(model, cache, attention: str, timer) -> float:
    """Milliseconds of one step inside cache.update and the attention function, the median of a few steps."""
    original, seconds, sums = ALL_ATTENTION_FUNCTIONS[attention], [], []
    cache.update = clocked(cache.update, seconds, model.device.type)
    AttentionInterface.register(attention, clocked(original, seconds, model.device.type))
    for _ in range(INSIDE_STEPS):
        seconds.clear()
        timer()
        sums.append(1e3 * sum(seconds))
    AttentionInterface.register(attention, original)
    del cache.update
    return sorted(sums)[INSIDE_STEPS // 2]


def cell(model, name: str, prefix: int, rows: list[tuple], arguments) -> dict:
    """One row of the result: a prefix with every contender."""
    capacity = prefix + 2 + (timing.RERUNS + 1) * arguments.rounds + INSIDE_STEPS
    caches, missing = make_caches(arguments.contenders, model.config, capacity)
    for cache in caches.values():
        fill(cache, rows, prefix)
    timers = {contender: step_timer(model, cache, CACHES[contender].attention) for contender, cache in caches.items()}
    found = timing.measure(timers, arguments.rounds, warm_up_s=0.0)
    inside = {c: inside_ms(model, cache, CACHES[c].attention, timers[c]) for c, cache in caches.items()}
    shape = dict(benchmark="generate", device=arguments.device, model=name, dtype=arguments.dtype, prefix=prefix, prefilled=rows[0][0].shape[2],
                 layers=model.config.get_text_config().num_hidden_layers, weights=arguments.model or "random", weight_bytes=weight_bytes(model))
    return shape | ratios(found) | dict(cache_and_attention_ms=inside, not_run=missing)


def ratios(found: dict) -> dict:
    """Medians, spread, and int4kv against each contender, by medians and round by round: above 1 means int4kv is faster."""
    ms = {name: spread["median"] for name, spread in found.items()}
    fp = {name: ms[name] for name in FP if name in ms}
    over = {name: value / ms["int4kv"] for name, value in ms.items() if name != "int4kv"} if "int4kv" in ms else {}
    paired = {name: timing.paired_ratio(found[name]["samples"], found["int4kv"]["samples"]) for name in over}
    return dict(ms=ms, spread={name: [s["p10"], s["p90"]] for name, s in found.items()}, rounds={name: s["rounds"] for name, s in found.items()},
                speedup_over=over, paired_speedup_over=paired, best_fp=min(fp, key=fp.get) if fp else None)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", choices=CONFIGS, default=list(CONFIGS), help="models with random weights")
    parser.add_argument("--model", help="a folder with real weights, instead")
    parser.add_argument("--layers", type=int, help="cut the models to their first layers")
    parser.add_argument("--prefix", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--prefill", type=int, default=1024, help="tokens that are really prefilled")
    parser.add_argument("--contenders", nargs="+", choices=CACHES, default=CONTENDERS)
    parser.add_argument("--device", choices=PREFERRED, default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="of the model; default: fp32 on the CPU, fp16 on mps, bf16 on cuda")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own choice")
    parser.add_argument("--rounds", type=int, default=15)
    output.add_options(parser)
    return parser.parse_args()


@torch.inference_mode()
def main():
    arguments = parse()
    arguments.dtype = arguments.dtype or PREFERRED[arguments.device]
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    facts, rows = about(arguments.device), []
    for name in [Path(arguments.model).name] if arguments.model else arguments.config:
        model = load(name, DTYPES[arguments.dtype], arguments.device, arguments.layers, arguments.model)
        known = prefix_rows(model, min(arguments.prefill, max(arguments.prefix)))
        for prefix in arguments.prefix:
            rows.append(cell(model, name, prefix, known, arguments) | dict(about=facts))
            medians = {contender: round(ms, 1) for contender, ms in rows[-1]["ms"].items()}
            print(f"{name}, {prefix} tokens before: {medians}, not run: {rows[-1]['not_run']}", file=sys.stderr)
        del model, known
    output.finish(rows, arguments)


if __name__ == "__main__":
    main()
