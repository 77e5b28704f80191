"""One model, one text, a list of recipes: all that int4kv eval measures, part by part."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..patching import check_supported
from . import findings
from .divergence import divergence
from .evaluate import evaluate, steps, windows
from .needle import DEPTHS, needle
from .recipes import Recipe

SHORTEST_NEEDLE = 256


def no_progress(description: str, total: int) -> Callable:
    return lambda: None


@dataclass(frozen=True)
class Assessment:
    """What to measure, and on how much text: `windows` windows (None: all) of `length` tokens, `batch` of them and `chunk` tokens at a time.

    needle: retrieval at lengths from 256 up to `length`, `trials` needles at each depth. divergence: every window's first half continued
    by `continued` tokens.
    """

    recipes: list[Recipe]
    length: int = 2048
    windows: int | None = None
    batch: int = 4
    chunk: int = 128
    needle: bool = False
    trials: int = 3
    divergence: bool = False
    continued: int = 128

    def check(self, model) -> None:
        """Raise ValueError for what this model cannot do, before anything is measured."""
        check_supported(model)
        longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if longest is not None and self.length > longest:
            raise ValueError(f"length is {self.length}; accepted: up to {longest}, the positions of the model")
        for recipe in self.recipes:
            try:
                recipe.new_cache(model, self.length)
            except ValueError as error:
                raise ValueError(f"{recipe.name!r} does not fit the model: {error}") from None

    def run(self, name: str, model, tokenizer, text: str, progress=no_progress) -> Iterator[tuple[str, list[dict]]]:
        """Yield ("quality" | "needle" | "divergence", rows) as they are found, rows as in findings.py.

        progress(description, total) returns a function that is called `total` times. Raises ValueError as check() and windows() do.
        """
        self.check(model)
        ids = windows(tokenizer, text, self.length, self.windows)
        step = progress(f"{name}: reading", steps(ids, self.recipes, self.chunk, self.batch))
        found = evaluate(model, ids, self.recipes, self.chunk, self.batch, step)
        yield "quality", findings.quality_rows(name, model, self.recipes, found)
        if self.needle:
            yield "needle", self._needle(name, model, tokenizer, ids, progress)
        if self.divergence:
            yield "divergence", self._divergence(name, model, ids, progress)

    def _needle(self, name, model, tokenizer, ids, progress) -> list[dict]:
        lengths = [length for length in (self.length >> halvings for halvings in (3, 2, 1, 0)) if length >= SHORTEST_NEEDLE]
        step = progress(f"{name}: needles", len(lengths) * (len(self.recipes) + 2))
        found = needle(model, tokenizer, ids.flatten(), self.recipes, lengths, self.trials, self.chunk, step)
        return findings.needle_rows(name, found, DEPTHS)

    def _divergence(self, name, model, ids, progress) -> list[dict]:
        prompts = ids[:, : self.length // 2]
        step = progress(f"{name}: continuing", len(self.recipes))
        return findings.divergence_rows(name, divergence(model, prompts, self.recipes, self.continued, self.chunk, step))
