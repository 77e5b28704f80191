"""Perplexity and KL divergence through a cache, decoding token by token, against the model without one."""

from dataclasses import dataclass
from math import exp

import torch


@dataclass(frozen=True)
class Quality:
    """Of next-token predictions over `tokens` positions: perplexity through the cache and without it, mean KL in nats."""

    perplexity: float
    fp_perplexity: float
    kl: float
    tokens: int

    @property
    def change(self) -> float:
        """Relative change of perplexity: 0.005 is half a percent worse."""
        return self.perplexity / self.fp_perplexity - 1


@torch.inference_mode()
def quality(model, input_ids: torch.Tensor, cache) -> Quality:
    """Feed input_ids [batch, tokens] one token at a time through an empty cache; compare with one forward without cache.

    For an Int4Cache the model must be patched, or its codes are read through dequantised tensors.
    """
    fp = model(input_ids, use_cache=False).logits.float().log_softmax(-1)
    nll = fp_nll = kl = 0.0
    for t in range(input_ids.shape[1] - 1):
        logits = model(input_ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits[:, -1]
        ours, theirs, target = logits.float().log_softmax(-1), fp[:, t], input_ids[:, t + 1, None]
        nll -= ours.gather(1, target).sum().item()
        fp_nll -= theirs.gather(1, target).sum().item()
        kl += (theirs.exp() * (theirs - ours)).sum().item()
    tokens = input_ids.shape[0] * (input_ids.shape[1] - 1)
    return Quality(exp(nll / tokens), exp(fp_nll / tokens), kl / tokens, tokens)


def windows(tokenizer, text: str, length: int, count: int | None = None) -> torch.Tensor:
    """Text as rows of `length` tokens, [count, length]; the rest is dropped. Raises ValueError when there are too few."""
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    rows = len(ids) // length
    if rows < (count or 1):
        raise ValueError(f"text has {len(ids)} tokens; accepted: {(count or 1) * length} or more for {count or 1} windows of {length}")
    return ids[: (count or rows) * length].view(-1, length)
