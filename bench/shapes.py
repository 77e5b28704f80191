"""Head layouts of the models that the benchmarks are about."""

import re
from argparse import ArgumentTypeError  # its text, unlike a ValueError's, reaches the user
from typing import NamedTuple


class Layout(NamedTuple):
    """Heads of one attention layer. str() is its name in results: 12q2kv128."""

    heads: int
    kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.heads}q{self.kv_heads}kv{self.head_dim}"

    def flops(self, keys: int, batch: int = 1) -> int:
        """Of one decode step: a multiplication and an addition per channel, for q k and for p v."""
        return 4 * batch * self.heads * self.head_dim * keys


MODELS = {
    "Qwen2.5-0.5B": Layout(14, 2, 64),
    "Qwen2.5-1.5B": Layout(12, 2, 128),
    "Qwen2.5-7B": Layout(28, 4, 128),
    "Qwen2.5-14B": Layout(40, 8, 128),
    "Gemma-3 1B": Layout(4, 1, 256),
    "Gemma-3 4B": Layout(8, 4, 256),
    "Gemma-3 27B": Layout(32, 16, 128),
}
DEFAULT = [MODELS[name] for name in ("Qwen2.5-1.5B", "Qwen2.5-7B", "Qwen2.5-0.5B", "Gemma-3 1B")]
KEYS = (128, 512, 1024, 4096, 16384, 65536, 131072)


def parse_layout(name: str) -> Layout:
    """'12q2kv128' or a model's name -> Layout. Raises argparse's error, naming what is accepted."""
    if name in MODELS:
        return MODELS[name]
    match = re.fullmatch(r"(\d+)q(\d+)kv(\d+)", name)
    layout = Layout(*map(int, match.groups())) if match else None
    if layout is None or 0 in layout or layout.heads % layout.kv_heads:
        raise ArgumentTypeError(f"layout is {name!r}; accepted: like 12q2kv128, with whole groups, or {', '.join(MODELS)}")
    return layout


def model_of(layout: Layout) -> str:
    """The model with this layout, or its own name."""
    return next((name for name, own in MODELS.items() if own == layout), str(layout))
