"""Next-token predictions through a packed cache against the same model's own: perplexity, KL divergence, agreement.

Text is read in chunks, each query through the codes of all that came before it, so a measurement cannot miss the cache.
"""

from dataclasses import dataclass
from math import exp

import torch

from ..naming import as_argument
from ..patching import is_patched
from .intervals import Estimate, estimate
from .recipes import FP, Recipe

PIECE = 128  # tokens that the reference and all recipes read in turn


@dataclass(frozen=True)
class Quality:
    """Of every prediction, [windows, tokens]: -log p of the true token, through the cache and without; KL in nats; same best token."""

    nll: torch.Tensor
    fp_nll: torch.Tensor
    token_kl: torch.Tensor
    agrees: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.nll.numel()

    @property
    def perplexity(self) -> float:
        return exp(self.nll.double().mean())

    @property
    def fp_perplexity(self) -> float:
        return exp(self.fp_nll.double().mean())

    @property
    def change(self) -> float:
        """Relative change of perplexity: 0.005 is half a percent worse."""
        return self.perplexity / self.fp_perplexity - 1

    @property
    def change_estimate(self) -> Estimate:
        return estimate((self.nll - self.fp_nll).mean(1)).map(lambda value: exp(value) - 1)

    @property
    def kl(self) -> float:
        return self.token_kl.double().mean().item()

    @property
    def kl_estimate(self) -> Estimate:
        return estimate(self.token_kl.mean(1))

    @property
    def kl_tail(self) -> float:
        """The 99.9th percentile of KL over all tokens: how bad the worst predictions are."""
        return self.token_kl.flatten().kthvalue(max(round(0.999 * self.tokens), 1)).values.item()

    @property
    def agreement_estimate(self) -> Estimate:
        """Share of tokens whose most likely successor is the same."""
        return estimate(self.agrees.float().mean(1))

    def kl_difference(self, other: "Quality") -> Estimate:
        """Mean KL minus the other's, paired window by window."""
        return estimate((self.token_kl - other.token_kl).mean(1))

    def __str__(self) -> str:
        return f"perplexity {self.perplexity:.4f} ({100 * self.change:+.2f} %), KL {self.kl:.5f}, {self.tokens} tokens"


def compare(ours: torch.Tensor, theirs: torch.Tensor, targets: torch.Tensor) -> Quality:
    """Quality, on the CPU, of log-probabilities [windows, tokens, vocabulary] against the reference's; targets [windows, tokens]."""
    nll, fp_nll = (-x.gather(2, targets[..., None])[..., 0] for x in (ours, theirs))
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    return Quality(*(x.cpu() for x in (nll, fp_nll, kl, ours.argmax(-1) == theirs.argmax(-1))))


def join(parts: list[Quality], dim: int) -> Quality:
    """One Quality of several: of further tokens (dim 1) or of further windows (dim 0)."""
    return Quality(*(torch.cat([getattr(part, name) for part in parts], dim) for name in Quality.__dataclass_fields__))


class Reader:
    """Reads text through a recipe's cache, a piece at a time."""

    def __init__(self, model, recipe: Recipe, length: int):
        self.model, self.recipe, self.cache = model, recipe, recipe.new_cache(model, length)

    def read(self, input_ids: torch.Tensor, chunk: int = PIECE) -> torch.Tensor:
        """Log-probabilities [batch, tokens, vocabulary], float32, of what follows each of the next tokens, fed `chunk` at a time."""
        with self.recipe.applied(self.model):
            logits = [self.model(ids, **as_argument(self.cache), use_cache=True).logits for ids in input_ids.split(chunk, dim=1)]
        return torch.cat(logits, dim=1).float().log_softmax(-1)


@torch.inference_mode()
def evaluate(model, input_ids: torch.Tensor, recipes: list[Recipe], chunk: int = PIECE, batch: int = 4, step=lambda: None) -> dict:
    """Recipe name -> Quality over windows of text, input_ids [windows, length], all read side by side.

    chunk: tokens per forward pass; 1 decodes token by token. batch: windows per forward pass. The reference is one DynamicCache
    for all recipes. step() is called after each recipe's turn, steps() times in all. Raises ValueError for a patched model.
    """
    refuse_patched(model)
    turns = [_read_side_by_side(model, rows, recipes, chunk, step) for rows in input_ids.to(model.device).split(batch)]
    return {recipe.name: join([turn[recipe.name] for turn in turns], dim=0) for recipe in recipes}


def steps(input_ids: torch.Tensor, recipes: list[Recipe], chunk: int = PIECE, batch: int = 4) -> int:
    """How often evaluate() calls step()."""
    windows, length = input_ids.shape
    return -(-windows // batch) * -(-(length - 1) // _piece(chunk)) * len(recipes)


def refuse_patched(model) -> None:
    if is_patched(model):
        raise ValueError("model is patched; accepted: one that is not, so that its own predictions are the reference")


def _piece(chunk: int) -> int:
    return chunk * -(-PIECE // chunk)


def _read_side_by_side(model, rows, recipes, chunk, step) -> dict:
    length = rows.shape[1] - 1
    reference = Reader(model, Recipe(FP, None), length)
    readers = [Reader(model, recipe, length) for recipe in recipes]
    parts = {recipe.name: [] for recipe in recipes}
    for ids, targets in zip(rows[:, :-1].split(_piece(chunk), dim=1), rows[:, 1:].split(_piece(chunk), dim=1)):
        theirs = reference.read(ids, _piece(chunk))
        for reader in readers:
            parts[reader.recipe.name].append(compare(reader.read(ids, chunk), theirs, targets))
            step()
    return {name: join(found, dim=1) for name, found in parts.items()}


@torch.inference_mode()
def quality(model, input_ids: torch.Tensor, cache) -> Quality:
    """Feed input_ids [batch, tokens] one token at a time through an empty cache; compare with one forward without cache.

    For an Int4Cache the model must be patched, or its codes are read through dequantised tensors.
    """
    fp = model(input_ids, use_cache=False).logits.float().log_softmax(-1)
    parts = []
    for t in range(input_ids.shape[1] - 1):
        logits = model(input_ids[:, t : t + 1], **as_argument(cache), use_cache=True).logits
        parts.append(compare(logits.float().log_softmax(-1), fp[:, t : t + 1], input_ids[:, t + 1 : t + 2]))
    return join(parts, dim=1)


def windows(tokenizer, text: str, length: int, count: int | None = None) -> torch.Tensor:
    """Text as rows of `length` tokens, [count, length]; the rest is dropped. Raises ValueError when there are too few."""
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    rows = len(ids) // length
    if rows < (count or 1):
        raise ValueError(f"text has {len(ids)} tokens; accepted: {(count or 1) * length} or more for {count or 1} windows of {length}")
    return ids[: (count or rows) * length].view(-1, length)
