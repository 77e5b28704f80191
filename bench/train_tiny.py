"""Train the two language models that ship with int4kv: `tiny-qwen2` and `tiny-gemma3`.

The script reads the Python standard library and documentation of the machine it runs on, trains a BPE
tokenizer, trains the models, writes their folders with model cards, and writes the held-out texts.

    python bench/train_tiny.py --model all --steps 20 --device cpu --batch 1     # a quick look

The shipped models, on 2026-11-22, torch 2.11.0, transformers 5.17.0, one NVIDIA H200, the sources of
Python 3.11.7 and the documentation of Debian's python3.11-doc 3.11.2:

    python bench/train_tiny.py --model all --compile --out int4kv/models --held-out tests/data/heldout.txt

2.8 minutes for qwen2 and 3.4 for gemma3, each started by itself with three trainings sharing the GPU.
Another machine rounds differently and gives other weights. How far plain int4 fails differs much between
trainings of qwen2 (perplexity times 87 to 223 in four of them), so measure a new one before shipping it.
"""

import datetime
import math
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import transformers
import typer
from rich.console import Console
from rich.progress import track
from tiny_corpus import DEFAULT_DOCS, DEFAULT_STDLIB, build
from tiny_export import CONTEXT, Run, check_size, save_weights, write_card, write_config
from transformers import AutoConfig, AutoModelForCausalLM, AttentionInterface, AttentionMaskInterface, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
ATTENTION = "centred_training"
PROSE_SHARE = 2 / 3
WARMUP, FINAL_LR_SHARE, CLIP, DROPOUT = 100, 0.02, 1.0, 0.2
SLOW_PAIRS, LARGE_PAIRS = 8, 6
K_BIAS = (70.0, 300.0)
Q_BIAS_STD = 2.0
QK_GAIN = 2.5

console = Console()


@dataclass(frozen=True)
class Recipe:
    steps: int
    attention_dropout: float
    weight_decay: float


RECIPES = {"qwen2": Recipe(2200, 0.0, 0.1), "gemma3": Recipe(1600, 0.1, 0.4)}


def window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    p = torch.arange(length, device=device)
    age = p[:, None] - p[None, :]
    return (age >= 0) & (age < window)


def attend(module, q, k, v, mask, scaling, dropout=0.0, sliding_window=None, **_):
    """Causal attention in the type of v, with keys centred first.

    Softmax does not see the centre, but bfloat16 does: it would round keys of 300 to steps of 2.
    """
    k = k - k.mean(dim=2, keepdim=True)
    groups = q.shape[1] // k.shape[1]
    q, k = q.to(v.dtype), k.to(v.dtype).repeat_interleave(groups, 1)
    v = v.repeat_interleave(groups, 1)
    mask = window_mask(q.shape[2], sliding_window, q.device) if sliding_window else None
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def exact_bias(layer: torch.nn.Linear) -> None:
    """Under autocast a linear layer adds its bias in bfloat16, too coarse for biases of hundreds."""
    layer.forward = lambda x: F.linear(x, layer.weight).float() + layer.bias


def drop_outputs(model: torch.nn.Module) -> None:
    """Twenty passes over a small corpus need dropout, which these architectures do not have."""
    for layer in model.model.layers:
        for branch in (layer.self_attn.o_proj, layer.mlp.down_proj):
            branch.register_forward_hook(lambda module, _, out: F.dropout(out, DROPOUT, module.training))


@torch.no_grad()
def plant_large_biases(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Give every KV head large constant keys on RoPE pairs that hardly turn within the context."""
    config = model.config
    dim, groups = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    low, high = (math.log(x) for x in K_BIAS)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight *= QK_GAIN
        layer.self_attn.k_proj.weight *= QK_GAIN
        k = layer.self_attn.k_proj.bias.view(-1, dim)
        q = layer.self_attn.q_proj.bias.view(-1, groups, dim)
        for head in range(config.num_key_value_heads):
            pairs = dim // 2 - 1 - torch.randperm(SLOW_PAIRS, generator=generator)[:LARGE_PAIRS]
            channels = torch.cat([pairs, pairs + dim // 2])
            size = torch.exp(low + (high - low) * torch.rand(len(channels), generator=generator))
            sign = torch.randint(0, 2, size.shape, generator=generator) * 2.0 - 1
            k[head, channels] = size * sign
            q[head][:, channels] = Q_BIAS_STD * torch.randn(groups, len(channels), generator=generator)


def make_model(folder: Path, name: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder, attention_dropout=RECIPES[name].attention_dropout)
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)
    drop_outputs(model)
    if name == "qwen2":
        plant_large_biases(model, torch.Generator().manual_seed(seed))
        for layer in model.model.layers:
            exact_bias(layer.self_attn.q_proj)
            exact_bias(layer.self_attn.k_proj)
    return model


def make_optimizer(model: torch.nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def learning_rate(step: int, steps: int, peak: float) -> float:
    warmup = min(WARMUP, max(1, steps // 10))
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return peak * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * (1 + math.cos(math.pi * share)) / 2)


class Batches:
    """Random windows of the two token streams, prose more often than code."""

    def __init__(self, corpus: Path, size: int, device: str, seed: int):
        self.streams = [np.load(corpus / f"{name}.npy").astype(np.int64) for name in ("prose", "code")]
        self.size, self.device, self.random = size, device, np.random.default_rng(seed)

    def draw(self) -> torch.Tensor:
        rows = []
        for _ in range(self.size):
            stream = self.streams[int(self.random.random() > PROSE_SHARE)]
            start = self.random.integers(len(stream) - CONTEXT)
            rows.append(stream[start : start + CONTEXT + 1])
        return torch.from_numpy(np.stack(rows)).to(self.device, non_blocking=True)


def loss_of(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def train(model, optimizer, batches: Batches, steps: int, lr: float, compiled: bool) -> None:
    model.train()
    runner = torch.compile(model) if compiled else model
    kind = torch.device(batches.device).type
    begun = time.perf_counter()
    for step in track(range(steps), "training", console=console):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr)
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            loss = loss_of(runner, batches.draw())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == steps - 1:
            console.print(f"step {step:5d}  loss {loss.item():.4f}  {time.perf_counter() - begun:.0f} s")


@torch.no_grad()
def perplexity(folder: Path, text: Path, device: str) -> tuple[float, int]:
    """Of the exported folder, as a user loads it: float32 arithmetic on float16-rounded weights."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text.read_text("utf-8"), return_tensors="pt", verbose=False).input_ids.to(device)
    losses = []
    for window in tokens[0].split(CONTEXT):
        logits = model(input_ids=window[None, :-1]).logits[0]
        losses.append(F.cross_entropy(logits, window[1:], reduction="none"))
    return torch.cat(losses).mean().exp().item(), tokens.shape[1]


def machine_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"a processor ({platform.machine()})"


def train_one(name: str, out: Path, corpus: Path, batches: Batches, options: dict) -> None:
    folder = out / f"tiny-{name}"
    write_config(folder, name)
    shutil.copyfile(corpus / "tokenizer.json", folder / "tokenizer.json")
    recipe, lr = RECIPES[name], options["lr"]
    steps = options["steps"] or recipe.steps
    model = make_model(folder, name, options["seed"]).to(batches.device)
    optimizer = make_optimizer(model, lr, recipe.weight_decay)
    begun = time.perf_counter()
    train(model, optimizer, batches, steps, lr, options["compiled"])
    minutes = (time.perf_counter() - begun) / 60
    save_weights(model, folder)
    ppl, held_out = perplexity(folder, corpus / "test.txt", batches.device)
    run = Run(
        command=f"python bench/train_tiny.py --model {name} --steps {steps} " + options["command"],
        machine=machine_name(batches.device),
        torch=torch.__version__.partition("+")[0],
        transformers=transformers.__version__,
        python=options["python"],
        date=datetime.date.today().isoformat(),
        seed=options["seed"],
        minutes=minutes,
        tokens_seen=steps * batches.size * CONTEXT,
        corpus_tokens=sum(map(len, batches.streams)),
        held_out=held_out,
        perplexity=ppl,
    )
    write_card(folder, name, model, run)
    console.print(f"tiny-{name}: perplexity {ppl:.3f}, {check_size(folder):,} bytes, {minutes:.1f} minutes")


def main(
    model: Annotated[str, typer.Option(help="qwen2, gemma3 or all")] = "all",
    steps: Annotated[int, typer.Option(help="0: those of the shipped model")] = 0,
    batch: Annotated[int, typer.Option(help="windows of 2048 tokens a step")] = 32,
    lr: float = 3e-3,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="cuda, cpu or auto")] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="use torch.compile")] = False,
    docs: Annotated[Path, typer.Option(help="reST sources of Python's documentation")] = DEFAULT_DOCS,
    stdlib: Annotated[Path, typer.Option(help="the standard library's folder")] = DEFAULT_STDLIB,
    corpus: Annotated[Path, typer.Option(help="tokens and tokenizer, built here if absent")] = ROOT / "build/corpus",
    out: Annotated[Path, typer.Option(help="where the model folders go")] = ROOT / "build/models",
    held_out: Annotated[Path, typer.Option(help="held-out text for tests")] = ROOT / "build/heldout.txt",
) -> None:
    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if not (corpus / "tokenizer.json").exists():
        build(corpus, stdlib, docs)
    for source, target in (("demo", out / "heldout.txt"), ("test", held_out)):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(corpus / f"{source}.txt", target)
    options = {"steps": steps, "lr": lr, "seed": seed, "compiled": compiled}
    command = f"--batch {batch} --lr {lr} --seed {seed}" + " --compile" * compiled
    options |= {"command": command, "python": (corpus / "python.txt").read_text()}
    for name in ("qwen2", "gemma3") if model == "all" else (model,):
        train_one(name, out, corpus, Batches(corpus, batch, device, seed), options)


if __name__ == "__main__":
    typer.run(main)
