"""Requests of mixed lengths through transformers' continuous batching: fp pages against int4 pages in as many bytes.

    python bench/serving.py --json bench/results/serving-cpu.json
    python bench/serving.py --model tiny-gemma3 --requests 64 --memory 4 8
    python bench/serving.py --device cuda --model Qwen2.5-1.5B --prompt 128 4096 --memory 256 1024 --json bench/results/serving-cuda.json

Each contender gets the same bytes: pages, and for int4kv also its rings of exact rows. The fp pages hold the model's dtype; --fp16-pages
counts them as fp16, which is what a GPU would hold (the default on the CPU, where models run in fp32). A row tells how many requests ran at
once, in how many forward passes, new tokens per second over all, and how many texts are those that the same model writes one at a time.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("OMP_PROC_BIND", "false")  # transformers' loop has a thread of its own, which would stay on the main one's core
import timing
import output
import torch
from machine import about
from model_configs import CONFIGS, load
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.scheduler import Scheduler

import int4kv
from int4kv import models
from int4kv.config import head_dim_of, kv_heads_of, text_config

CONTENDERS = ("fp", "int4kv")


class Watched:
    """Counts, while inside, requests that are active at once, tokens that are in the cache at once, and forward passes."""

    def __enter__(self):
        self.requests = self.tokens = self.batches = 0
        self._plain = Scheduler._process_candidates
        watched = self

        def counting(scheduler, *args):
            result = watched._plain(scheduler, *args)
            watched.requests = max(watched.requests, len(scheduler.active_requests))
            watched.tokens = max(watched.tokens, sum(state.position_offset for state in scheduler.active_requests.values()))
            watched.batches += 1
            return result

        Scheduler._process_candidates = counting
        return self

    def __exit__(self, *_):
        Scheduler._process_candidates = self._plain


def load_with_text(name: str, device: str):
    """A model, and ids for its prompts: of the held-out text, or random ones for random weights."""
    dtype = torch.float32 if device == "cpu" else torch.float16
    if name in CONFIGS:
        return load(name, dtype, device), torch.randint(5, 100_000, (32768,), generator=torch.Generator().manual_seed(1)).tolist()
    model, tokenizer = models.load(name, device, dtype)
    return model, tokenizer(models.HELDOUT.read_text(), verbose=False).input_ids


def prompts(ids: list[int], requests: int, shortest: int, longest: int) -> list[list[int]]:
    """Pieces of a text, log-uniform in length."""
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.rand(requests, generator=generator) * torch.tensor(longest / shortest).log()).exp() * shortest
    starts = torch.randint(len(ids) - longest, (requests,), generator=generator).tolist()
    return [ids[begin : begin + int(n)] for begin, n in zip(starts, lengths)]


def token_bytes(model, itemsize: int) -> int:
    """Of an unpacked token in all layers."""
    return 2 * text_config(model.config).num_hidden_layers * kv_heads_of(model.config) * head_dim_of(model.config) * itemsize


def serve(model, contender: str, asked, nbytes: int, arguments) -> dict:
    """One run of all requests: a sample."""
    itemsize = 2 if contender == "fp" and arguments.fp16_pages else model.dtype.itemsize
    batching = ContinuousBatchingConfig(page_size=arguments.page_size, num_blocks=nbytes // (token_bytes(model, itemsize) * arguments.page_size),
                                        max_batch_tokens=arguments.batch_tokens, allow_block_sharing=False)
    decoding = GenerationConfig(max_new_tokens=arguments.new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    begin = time.perf_counter()
    with Watched() as watched:
        found = list(model.generate_batch(asked, generation_config=decoding, continuous_batching_config=batching).values())
    seconds = time.perf_counter() - begin
    failed = [result.error for result in found if result.error]
    if failed or len(found) != len(asked):
        raise RuntimeError(f"{contender}: {len(asked) - len(found)} requests are missing, {len(failed)} failed: {failed[:1]}")
    return dict(seconds=seconds, texts=[result.generated_tokens for result in found], requests_at_once=watched.requests,
                tokens_at_once=watched.tokens, batches=watched.batches)


def run(model, contender, config, *rest) -> dict:
    if contender == "fp":
        return serve(model, contender, *rest)
    with int4kv.patched(model, config):
        return serve(model, contender, *rest)


def one_by_one(model, asked, new_tokens: int) -> list[list[int]]:
    """What the model writes for one request at a time."""
    found = [model.generate(torch.tensor([ids], device=model.device), max_new_tokens=new_tokens, do_sample=False) for ids in asked]
    return [ids[0, len(prompt) :].tolist() for ids, prompt in zip(found, asked)]


def alone(model, config, asked, new_tokens: int) -> dict:
    """The texts of one request at a time, per contender."""
    fp = one_by_one(model, asked, new_tokens)
    with int4kv.patched(model, config):
        return dict(fp=fp, int4kv=one_by_one(model, asked, new_tokens))


def measure(model, name, config, asked, expected, mib: float, arguments) -> list[dict]:
    """A row per contender at one size, their runs taking turns after one that only warms up."""
    samples = {contender: [] for contender in CONTENDERS}
    for contender in CONTENDERS:
        run(model, contender, config, asked[:2], int(mib * 2**20), arguments)
    for round_ in range(arguments.rounds):
        for contender in CONTENDERS[:: 1 if round_ % 2 == 0 else -1]:
            samples[contender].append(run(model, contender, config, asked, int(mib * 2**20), arguments))
            print(f"{mib} MiB, {contender}: {samples[contender][-1]['seconds']:.1f} s", file=sys.stderr)
    rows, generated = [], len(asked) * arguments.new_tokens
    for contender, runs in samples.items():
        speed = timing.spread([generated / one["seconds"] for one in runs])
        same = sum(a == b for a, b in zip(runs[0]["texts"], expected[contender]))
        rows.append(dict(benchmark="serving", device=arguments.device, model=name, contender=contender, cache_mib=mib, requests=len(asked),
                         prompt_tokens=sum(map(len, asked)), new_tokens=arguments.new_tokens, page_size=arguments.page_size,
                         fp16_pages=arguments.fp16_pages, tokens_per_s=speed["median"], p10=speed["p10"], p90=speed["p90"],
                         rounds=arguments.rounds, same_as_alone=same,
                         **{key: runs[0][key] for key in ("requests_at_once", "tokens_at_once", "batches")}))
    fp, int4 = rows
    int4 |= {f"{key}_over_fp": int4[key] / fp[key] for key in ("tokens_per_s", "tokens_at_once", "requests_at_once")}
    return rows


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-qwen2", help=f"a bundled model, a folder, a hub id, or with random weights: {', '.join(CONFIGS)}")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt", type=int, nargs=2, default=(64, 1024), metavar=("SHORTEST", "LONGEST"), help="tokens")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--memory", type=float, nargs="+", default=[16, 64], help="MiB for the cache of all requests")
    parser.add_argument("--page-size", type=int, default=32)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens of a forward pass at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "mps", "cuda"), default="cpu")
    parser.add_argument("--fp16-pages", action=argparse.BooleanOptionalAction, help="count fp pages as fp16; default: on the CPU")
    output.add_options(parser)
    arguments = parser.parse_args()
    arguments.fp16_pages = arguments.device == "cpu" if arguments.fp16_pages is None else arguments.fp16_pages
    return arguments


def main():
    arguments = parse()
    model, ids = load_with_text(arguments.model, arguments.device)
    asked = prompts(ids, arguments.requests, *arguments.prompt)
    config = int4kv.calibrate(model, torch.tensor([ids[:2048]]))
    print(f"{arguments.model}: {sum(map(len, asked))} tokens of prompts, first one by one", file=sys.stderr)
    expected, rows = alone(model, config, asked, arguments.new_tokens), []
    for mib in arguments.memory:
        rows += measure(model, arguments.model, config, asked, expected, mib, arguments)
    output.finish([row | dict(about=about(arguments.device)) for row in rows], arguments)


if __name__ == "__main__":
    main()
