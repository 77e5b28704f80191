"""Loading a model for the command line and streaming what it writes."""

import time

import torch
from transformers import TextStreamer

from . import models
from .cache import Int4Cache
from .demo import dynamic_bytes
from .naming import cache_of
from .reporting import report


def load_or_fail(name: str, device: str, fail):
    """models.load, with what a user gets wrong told in one sentence."""
    try:
        return models.load(name, device, torch.float32 if device == "cpu" else "auto")
    except (OSError, ValueError) as error:
        fail(f"--model is {name!r}, which could not be loaded: {str(error).splitlines()[0]}")


class ConsoleStreamer(TextStreamer):
    """Prints text as it comes; started() is called at the first new token, when prefill is over."""

    def __init__(self, tokenizer, console, started):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.console, self.started, self.tokens = console, started, -1  # the prompt comes first and counts as token 0

    def put(self, value):
        self.tokens += 1
        if self.tokens == 1:
            self.started()
        super().put(value)

    def on_finalized_text(self, text, stream_end=False):
        self.console.print(text, end="\n" if stream_end else "", soft_wrap=True, markup=False, highlight=False, emoji=False)


def stream(model, tokenizer, prompt: str, console, errors, **options) -> str:
    """Generate with streaming output; returns the closing line: tokens, speed, prefill time and cache bytes."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    begin, first = time.perf_counter(), []
    status = errors.status(f"prefilling {ids.shape[1]} tokens")
    status.start()

    def started():
        first.append(time.perf_counter())
        status.stop()

    streamer = ConsoleStreamer(tokenizer, console, started)
    try:
        out = model.generate(ids, attention_mask=torch.ones_like(ids), streamer=streamer, return_dict_in_generate=True, **options)
    finally:
        status.stop()
    return closing_line(cache_of(out), out.sequences.shape[1] - ids.shape[1], first[0] - begin, time.perf_counter() - first[0])


def closing_line(cache, tokens: int, prefill: float, decode: float) -> str:
    """Speed counts the tokens after the first, over the time after it."""
    speed = f"{(tokens - 1) / decode:.1f} tokens/s" if tokens > 1 else "one token"
    if isinstance(cache, Int4Cache):
        held = f"int4 cache {cache.memory_footprint():,} bytes ({report(cache).fp16_bytes:,} in fp16)"
    else:
        held = f"fp cache {dynamic_bytes(cache):,} bytes"
    return f"{tokens} tokens, {speed}, prefill {prefill:.2f} s, {held}"
