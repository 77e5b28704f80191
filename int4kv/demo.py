"""int4kv demo: a bundled model with the fp cache and with the int4 cache: text, bytes, speed, quality, side by side."""

import time
from dataclasses import dataclass, field

import torch
from transformers.cache_utils import DynamicCache

from . import models
from .baselines import PlainInt4Cache
from .cache import Int4Cache
from .config import head_dim_of, kv_heads_of, text_config
from .evaluation.evaluate import Quality, quality, windows
from .naming import as_argument
from .patching import patched

PROMPT = "Changed in version 3.8: "
CONTEXTS = (1024, 4096, 16384)
STEPS = 15
WARM_UP = 3


@dataclass
class Timing:
    """One context length: (median, lowest, highest) milliseconds per token of both caches, bytes held, and bytes in fp16."""

    context: int
    fp_ms: tuple
    int4_ms: tuple
    fp16_bytes: int
    int4_bytes: int


@dataclass
class Findings:
    """What the demonstration measured on one model."""

    model: str
    fp_text: str = ""
    int4_text: str = ""
    timings: list = field(default_factory=list)
    int4: Quality | None = None
    plain: Quality | None = None
    threads: int = 0


def generate_text(model, tokenizer, tokens: int = 60) -> str:
    """A continuation of the demonstration's prompt, sampled with the same seed every time."""
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids.to(model.device)
    torch.manual_seed(1)
    options = dict(do_sample=True, temperature=0.8, top_p=0.95, max_new_tokens=tokens)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def _fill(cache, model, tokens: int) -> None:
    """Random keys and values: speed and bytes do not depend on what they are."""
    shape = (1, kv_heads_of(model.config), tokens, head_dim_of(model.config))
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(shape, generator=generator).to(model.device, model.dtype) for _ in range(2))
    for layer_idx in range(text_config(model.config).num_hidden_layers):
        cache.update(k, v, layer_idx)


def dynamic_bytes(cache) -> int:
    """Bytes that a DynamicCache holds."""
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


def _synchronize(device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def _one_step(model, cache) -> float:
    token = torch.tensor([[5]], device=model.device)
    _synchronize(model.device)
    begin = time.perf_counter()
    model(token, **as_argument(cache), use_cache=True)
    _synchronize(model.device)
    return 1e3 * (time.perf_counter() - begin)


def _spread(times) -> tuple:
    times = sorted(times)
    return times[len(times) // 2], times[0], times[-1]


@torch.inference_mode()
def time_contexts(model, contexts=CONTEXTS):
    """Yield a Timing per context length: the two caches take turns, token by token."""
    for context in contexts:
        with patched(model):
            int4 = Int4Cache(model.config).expect(context + STEPS + WARM_UP)
            _fill(int4, model, context)
        fp = DynamicCache(config=text_config(model.config))
        _fill(fp, model, context)
        fp_ms, int4_ms = [], []
        for _ in range(STEPS + WARM_UP):
            fp_ms.append(_one_step(model, fp))
            with patched(model):
                int4_ms.append(_one_step(model, int4))
        fp16_bytes = dynamic_bytes(fp) * 2 // model.dtype.itemsize
        yield Timing(context, _spread(fp_ms[WARM_UP:]), _spread(int4_ms[WARM_UP:]), fp16_bytes, int4.memory_footprint())


def measure_quality(model, tokenizer, length: int = 1024, count: int = 4) -> tuple[Quality, Quality]:
    """(int4kv, plain abs-max int4) on the held-out text that ships with the package."""
    ids = windows(tokenizer, models.HELDOUT.read_text(), length, count).to(model.device)
    plain = quality(model, ids, PlainInt4Cache(config=text_config(model.config)))
    with patched(model):
        return quality(model, ids, Int4Cache(model.config)), plain


def run(name: str, say, device: str = "cpu") -> Findings:
    """Everything for one bundled model; say(text) is told what comes next."""
    say(f"{name}: loading")
    model, tokenizer = models.load(name, device, torch.float32)
    found = Findings(name, threads=torch.get_num_threads())
    say(f"{name}: generating with both caches")
    found.fp_text = generate_text(model, tokenizer)
    with patched(model):
        found.int4_text = generate_text(model, tokenizer)
    for context in CONTEXTS:
        say(f"{name}: timing at {context} tokens")
        found.timings += time_contexts(model, (context,))
    say(f"{name}: perplexity, token by token")
    found.int4, found.plain = measure_quality(model, tokenizer)
    return found


def plot(findings: list, file) -> None:
    """Cache bytes and milliseconds per token over context length, both caches, a row per model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(findings), 2, figsize=(9, 3.2 * len(findings)), squeeze=False)
    for row, found in zip(axes, findings):
        contexts = [t.context for t in found.timings]
        for label, nbytes, ms in (("fp cache", "fp16_bytes", "fp_ms"), ("int4 cache", "int4_bytes", "int4_ms")):
            row[0].plot(contexts, [getattr(t, nbytes) / 2**20 for t in found.timings], "o-", label=label)
            row[1].plot(contexts, [getattr(t, ms)[0] for t in found.timings], "o-", label=label)
        for axis, title in zip(row, ("cache, MiB (fp: in fp16)", "decode, ms per token")):
            axis.set(title=f"{found.model}: {title}", xlabel="tokens in the cache", ylim=(0, None))
            axis.set_xticks(contexts, [f"{c // 1024}k" for c in contexts])
            axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
