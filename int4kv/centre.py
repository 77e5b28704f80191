"""The vector subtracted from every key of a sequence before quantisation.

softmax(q (k - c)) = softmax(q k): a constant shifts all scores of a query alike. So any c is exact, and one near the
mean of the keys takes away the large biases (Qwen2.5) that would otherwise eat the four bits.
"""

import torch


def first_chunk_mean(k: torch.Tensor, padding: torch.Tensor | None, tokens: int) -> torch.Tensor:
    """Mean of the first `tokens` real keys of each sequence: k [batch, heads, n, head_dim] -> float32 [batch, heads, head_dim].

    padding: bool or integer [batch, >= n], nonzero = real, or None. A row without a real key takes them all.
    The count is capped so that a longer first chunk (drafts behind a prompt, a bigger prefill chunk) changes nothing.
    """
    n = k.shape[2]
    if padding is None:
        return k[:, :, :tokens].float().mean(dim=2)
    real = padding[:, :n].to(k.device).bool()
    real = real | ~real.any(dim=1, keepdim=True)
    first = (real & (real.cumsum(dim=1) <= tokens))[:, None, :, None]
    return k.float().masked_fill(~first, 0.0).sum(dim=2) / first.sum(dim=2)
