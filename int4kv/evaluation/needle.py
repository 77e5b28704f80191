"""A needle in real text: a random name put at a depth of a text of some length, asked for on its last line.

    ...text  ".. data:: AMBER_CEDAR_OLIVE_RIVER_TIGER_PEARL"  text...  ".. data:: AMBER_CEDAR_OLIVE"  ->  "_RIVER_TIGER_PEARL"

Copying from the context is what even a small model can do. How well the model itself does it, and how far it gets by guessing, with no
needle in the text, is measured beside it.
"""

import random
from dataclasses import dataclass

import torch

from .evaluate import PIECE, Reader, refuse_patched
from .recipes import FP, Recipe

WORDS = """AMBER BASIL CEDAR DELTA EMBER FABLE GARNET HAZEL IVORY JASPER
LEMON MAPLE NIGHT OLIVE PEARL RIVER SILVER TIGER VELVET WILLOW""".split()
CUE, ANSWER = "\n\n.. data:: {}_{}_{}", "_{}_{}_{}\n\n"
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Haystack:
    """Texts of one length: input_ids [texts, length], each ending in its needle's answer, and how many tokens that has."""

    input_ids: torch.Tensor
    answers: tuple
    depths: tuple


@dataclass(frozen=True)
class Retrieval:
    """Share of the needle's tokens returned, [lengths, depths]; the mean over trials."""

    lengths: tuple
    score: torch.Tensor


def make_haystack(tokenizer, text_ids: torch.Tensor, length: int, trials: int, present: bool = True) -> Haystack:
    """trials needles at every depth, in runs of text_ids [tokens] that start anywhere. present=False leaves the needle out."""
    rows, answers, depths = [], [], []
    for depth in DEPTHS:
        for trial in range(trials):
            rng = random.Random(f"{length} {depth} {trial}")
            cue, answer = _needle(tokenizer, rng)
            hidden = cue + answer if present else []
            around = length - len(hidden) - len(cue) - len(answer)
            begin = rng.randrange(len(text_ids) - around + 1)
            hay, place = text_ids[begin : begin + around].tolist(), round(depth * around)
            rows.append(hay[:place] + hidden + hay[place:] + cue + answer)
            answers.append(len(answer))
            depths.append(depth)
    return Haystack(torch.tensor(rows), tuple(answers), tuple(depths))


def _needle(tokenizer, rng) -> tuple[list, list]:
    words = rng.sample(WORDS, 6)
    cue = CUE.format(*words[:3])
    whole = tokenizer(cue + ANSWER.format(*words[3:]), add_special_tokens=False)["input_ids"]
    start = tokenizer(cue, add_special_tokens=False)["input_ids"]
    return start, whole[len(start) :]


def check_lengths(lengths, text_tokens: int) -> None:
    """Raise ValueError for a length that a needle does not fit in, or that the text does not have."""
    wrong = [length for length in lengths if not 128 <= length <= text_tokens]
    if wrong:
        raise ValueError(f"lengths has {wrong[0]}; accepted: 128 to {text_tokens}, the tokens of the text")


@torch.inference_mode()
def needle(model, tokenizer, text_ids: torch.Tensor, recipes: list[Recipe], lengths, trials: int = 3, chunk: int = PIECE,
           step=lambda: None) -> dict:
    """Recipe name -> Retrieval, with "fp" (the model's own cache) and "no needle" (the same, guessing) first.

    Everything is read through the cache, chunk by chunk; a token counts when it is the most likely one after the true ones before it,
    so a needle whose tokens all count is one that greedy decoding returns whole. step() is called len(lengths) * (recipes + 2) times.
    """
    refuse_patched(model)
    check_lengths(lengths, len(text_ids))
    fp = Recipe(FP, None)
    asked = [(FP, fp, True), ("no needle", fp, False)] + [(r.name, r, True) for r in recipes if r.config is not None]
    found = {name: [] for name, _, _ in asked}
    for length in lengths:
        stacks = {present: make_haystack(tokenizer, text_ids, length, trials, present) for present in (True, False)}
        for name, recipe, present in asked:
            found[name].append(_score(model, recipe, stacks[present], chunk))
            step()
    return {name: Retrieval(tuple(lengths), torch.stack(scores)) for name, scores in found.items()}


def _score(model, recipe, haystack: Haystack, chunk: int) -> torch.Tensor:
    """Mean share per depth, [depths]. Only the end of a text is looked at; the rest is read for the cache."""
    end = max(haystack.answers) + 1
    shares = []
    for ids, answers in zip(haystack.input_ids.to(model.device).split(len(DEPTHS)), _runs(haystack.answers, len(DEPTHS))):
        reader = Reader(model, recipe, ids.shape[1])
        for part in ids[:, :-end].split(PIECE, dim=1):
            reader.read(part, chunk)
        right = (reader.read(ids[:, -end:-1], chunk).argmax(-1) == ids[:, 1 - end :]).cpu()
        shares += [right[row, right.shape[1] - answer :].double().mean() for row, answer in enumerate(answers)]
    return torch.stack(shares).view(len(DEPTHS), -1).mean(1)


def _runs(values, size):
    return [values[begin : begin + size] for begin in range(0, len(values), size)]
