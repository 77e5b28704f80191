"""generate --prompt-cache FILE: a prompt's beginning comes from a file that was saved before, or is read now and saved."""

from pathlib import Path

import torch

from .cache import Int4Cache
from .naming import as_argument
from .saved import load_cache, save_cache


def load_or_read(model, tokenizer, prompt: str, file: Path, tell, fail) -> Int4Cache:
    """A cache of a patched model that holds the first tokens of the prompt, all but the last at most.

    tell(text) hears how many tokens came from the file or went into it; fail(message) what a user gets wrong, and raises.
    """
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    if ids.shape[1] < 2:
        fail(f"--prompt has {ids.shape[1]} token; accepted with --prompt-cache: 2 or more")
    try:
        return _load(model, ids, file, tell) if file.exists() else _read(model, ids, file, tell)
    except ValueError as error:
        fail(f"--prompt-cache: {error}. To make it anew, delete the file, or name another")
    except OSError as error:
        fail(f"--prompt-cache: {error}")


def _load(model, ids, file, tell):
    cache = load_cache(file, model, input_ids=ids)
    if cache.get_seq_length() == ids.shape[1]:
        cache.crop(-1)  # generate reads the last token itself
    tell(f"reused {cache.get_seq_length()} of {ids.shape[1]} prompt tokens from {file}")
    return cache


@torch.no_grad()
def _read(model, ids, file, tell):
    cache = Int4Cache(model.config, model._int4kv.config)
    model(ids[:, :-1], **as_argument(cache), use_cache=True, logits_to_keep=1)
    save_cache(cache, file, model, input_ids=ids)
    tell(f"saved {cache.get_seq_length()} of {ids.shape[1]} prompt tokens to {file}")
    return cache
