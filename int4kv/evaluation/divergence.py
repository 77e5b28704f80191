"""Where a greedy continuation through a packed cache leaves the one that the model writes by itself."""

from dataclasses import dataclass

import torch

from .evaluate import PIECE, Reader, refuse_patched
from .recipes import FP, Recipe


@dataclass(frozen=True)
class Divergence:
    """Per prompt the index of the first token that differs, or `tokens` where none does, [prompts]."""

    first: torch.Tensor
    tokens: int

    @property
    def median(self) -> float:
        return self.first.double().quantile(0.5).item()

    @property
    def never(self) -> float:
        """Share of prompts whose continuations are the same to the end."""
        return (self.first == self.tokens).double().mean().item()


@torch.inference_mode()
def divergence(model, prompts: torch.Tensor, recipes: list[Recipe], tokens: int = 128, chunk: int = PIECE, step=lambda: None) -> dict:
    """Recipe name -> Divergence, for prompts [prompts, length] without padding, continued by `tokens` tokens.

    The model's own continuation is read through each recipe's cache: up to the first token that the recipe would have chosen
    otherwise, that is what greedy decoding through it does.
    """
    refuse_patched(model)
    prompts = prompts.to(model.device)
    written = greedy(model, prompts, tokens)
    return {recipe.name: _first_difference(model, recipe, prompts, written, chunk, step) for recipe in recipes}


def greedy(model, prompts: torch.Tensor, tokens: int) -> torch.Tensor:
    """The most likely continuation, token by token through transformers' own cache, [prompts, tokens]; nothing ends it."""
    reader = Reader(model, Recipe(FP, None), prompts.shape[1] + tokens)
    written = [reader.read(prompts)[:, -1:].argmax(-1)]
    while len(written) < tokens:
        written.append(reader.read(written[-1])[:, -1:].argmax(-1))
    return torch.cat(written, dim=1)


def _first_difference(model, recipe, prompts, written, chunk, step) -> Divergence:
    begin, tokens = prompts.shape[1] - 1, written.shape[1]
    reader = Reader(model, recipe, begin + tokens)
    reader.read(prompts[:, :-1], chunk)
    chosen = reader.read(torch.cat([prompts[:, -1:], written[:, :-1]], dim=1), chunk).argmax(-1)
    step()
    same = (chosen == written).long().cumprod(dim=1)
    return Divergence(same.sum(dim=1).cpu(), tokens)
