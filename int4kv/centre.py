"""The vector subtracted from every key of a sequence before quantisation, and from every value if asked for.

softmax(q (k - c)) = softmax(q k): a constant shifts all scores of a query alike. So any c is exact, and one near the
mean of the keys takes away the large biases (Qwen2.5) that would otherwise eat the four bits. Weights of values sum to 1:
what is subtracted from all of them is added to the output, once.
"""

import torch

from .ring import TokenRing


INDEPENDENT = 3  # rows that 32 neighbours are worth: keys of near tokens are alike. 2 to 4 do as well on the bundled models, 8 is worse


def first_real_centre(k: torch.Tensor, real: torch.Tensor, tokens: int) -> torch.Tensor:
    """Mean of each sequence's first `tokens` real rows, k [batch, heads, n, head_dim] -> float32 [batch, heads, head_dim], drawn towards 0
    in channels where the rows disagree (James and Stein 1961): what a few tokens happen to share is not what all share.

    Channels are judged in the pairs that RoPE turns. real: bool [batch, n]. A sequence without a real row takes them all.
    """
    real = real | ~real.any(dim=1, keepdim=True)
    first = (real & (real.cumsum(dim=1) <= tokens))[:, None, :, None]
    count, rows = first.sum(dim=2), k.float()
    mean = rows.masked_fill(~first, 0.0).sum(dim=2) / count
    spread = (rows - mean.unsqueeze(2)).square().masked_fill(~first, 0.0).sum(dim=2) / count
    noise = _of_pairs(spread) / count.clamp_max(INDEPENDENT)
    return mean * (1.0 - noise / _of_pairs(mean.square()).clamp_min(1e-30)).clamp_min(0.0)


def _of_pairs(x):
    """Each channel's sum with the one that RoPE pairs it with."""
    return x + x.roll(x.shape[-1] // 2, dims=-1)


class EarlyRows:
    """The first rows of a sequence as they came, until every sequence of the batch has `tokens` real keys to average.

    A first chunk that is shorter starts with the mean it has. When the last needed key arrives the centre is settled and
    the few tokens before it are written again from here. So the centre depends on the text, not on how it was chunked.
    """

    def __init__(self, k: torch.Tensor, v: torch.Tensor, tokens: int, padding: torch.Tensor | None):
        batch, heads, n, head_dim = k.shape
        self.tokens, self.settled = tokens, False
        pad = None if padding is None else ~padding[:, :n].to(k.device).bool()
        self.needed = tokens + (0 if pad is None else int(pad.sum(dim=1).max()))
        self.real = torch.ones(batch, self.needed, dtype=torch.bool, device=k.device)
        if pad is not None:
            known = min(n, self.needed)
            self.real[:, :known] = ~pad[:, :known]
        self.ring = TokenRing([x.new_zeros(batch, heads, self.needed, head_dim) for x in (k, v)])

    def add(self, k, v, begin: int) -> None:
        """Keep what is needed of a chunk that starts at token begin."""
        end = min(begin + k.shape[2], self.needed)
        if begin < end:
            for kept, new in zip(self.ring.tensors, (k, v)):
                kept[:, :, begin:end] = new[:, :, : end - begin]

    def rows(self, first: int, end: int) -> list[torch.Tensor]:
        """Keys and values of tokens first .. end."""
        return [kept[:, :, first:end] for kept in self.ring.tensors]

    def mean(self, side: int, length: int) -> torch.Tensor:
        """The centre of keys (0) or values (1) as far as the first `length` tokens tell."""
        n = min(length, self.needed)
        return first_real_centre(self.ring.tensors[side][:, :, :n], self.real[:, :n], self.tokens)

    def map(self, change) -> None:
        self.ring.map(change)
        self.real = change(self.real)
