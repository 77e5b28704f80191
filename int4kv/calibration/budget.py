"""Bits per layer, for K and V apart, under a budget: what each costs the model's output is measured, then bytes go where they buy most.

Rounding errors of different layers are independent and KL is quadratic in them, so their costs nearly add up: each is measured alone,
everything else at 8 bits, and the sum is checked in the end on the recipe as a whole.
"""

from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table

from ..cache import Int4Cache
from ..config import EXACT_BITS, Int4KVConfig, text_config
from ..evaluation.evaluate import evaluate, steps
from ..progress import bars
from ..evaluation.recipes import Recipe
from ..reporting import report

WIDTHS = (3, 4, 5, 8)
TOKENS = 4096  # the context at which bytes are counted
WINDOW = 1024
TEXT_TOKENS = 2048  # that KL is measured on, unless the budget says otherwise
AT_ONCE = 16  # recipes whose caches are held side by side
ROUNDS = 4  # corrections of a KL target by what was measured
KEYS = ("bits", "kl", "tokens")


@dataclass(frozen=True)
class BudgetReport:
    """What was chosen and how it did on the calibration text.

    config: with layer_bits. bits_per_value: all bytes held at 4096 tokens. predicted_kl: the sum of what was measured for one side of
    one layer at a time. kl: measured. uniform: (K, V) bits of the best recipe that fits and has the same in all layers, or None;
    uniform_kl: its KL.
    """

    config: Int4KVConfig
    bits_per_value: float
    predicted_kl: float
    kl: float
    uniform: tuple | None
    uniform_kl: float | None

    def table(self) -> Table:
        """A rich table of the bits of every layer."""
        table = Table("layer", "K bits", "V bits")
        for layer, (k_bits, v_bits) in self.config.layer_bits:
            table.add_row(str(layer), str(k_bits), str(v_bits))
        return table

    def __str__(self) -> str:
        found = f"{self.bits_per_value:.2f} bits per value at {TOKENS} tokens, KL {self.kl:.5f} (predicted {self.predicted_kl:.5f})"
        if self.uniform is None:
            return f"{found}; no recipe with the same bits in all layers fits"
        k_bits, v_bits = self.uniform
        return f"{found}; the best with the same bits in all layers: K {k_bits}, V {v_bits}, KL {self.uniform_kl:.5f}"


class Meter:
    """Mean KL and bytes of configs that differ in layer_bits, for one model and text."""

    def __init__(self, model, rows: torch.Tensor, config: Int4KVConfig, bar):
        self.model, self.rows, self.config, self.bar = model, rows, config, bar

    def with_bits(self, layer_bits) -> Int4KVConfig:
        return replace(self.config, layer_bits=layer_bits)

    def kl(self, many: list, name: str) -> list[float]:
        """KL in nats of each of several layer_bits."""
        recipes = [Recipe(str(i), self.with_bits(bits)) for i, bits in enumerate(many)]
        parts = [recipes[i : i + AT_ONCE] for i in range(0, len(recipes), AT_ONCE)]
        advance = self.bar(name, sum(steps(self.rows, part, WINDOW) for part in parts))
        found = {}
        for part in parts:
            found |= evaluate(self.model, self.rows, part, chunk=WINDOW, batch=1, step=advance)
        return [found[recipe.name].kl for recipe in recipes]

    def held(self, layer_bits):
        return report(Int4Cache(self.model.config, self.with_bits(layer_bits)), TOKENS)


class Costs:
    """Per side (layer, 0 for K or 1 for V) and width: what it adds to KL, and to the bytes held."""

    def __init__(self, meter: Meter, layers: list[int]):
        self.layers, self.sides = layers, [(layer, which) for layer in layers for which in (0, 1)]
        changes = [(side, width) for side in self.sides for width in WIDTHS[:-1]]
        finest = {side: WIDTHS[-1] for side in self.sides}
        self.floor, *measured = meter.kl([self.layer_bits(b) for b in (finest, *(finest | {s: w} for s, w in changes))], "measuring layers")
        self.kl = {(side, WIDTHS[-1]): 0.0 for side in self.sides}
        self.kl |= {change: max(kl - self.floor, 0.0) for change, kl in zip(changes, measured)}
        self._count_bytes(meter)

    def _count_bytes(self, meter):
        uniform = {width: meter.held(self.layer_bits({side: width for side in self.sides})) for width in WIDTHS}
        self.fp16_bytes, self.least_bytes = uniform[WIDTHS[0]].fp16_bytes, uniform[WIDTHS[0]].bytes
        self.bytes = {(side, width): (uniform[width].layers[side[0]].bytes - uniform[WIDTHS[0]].layers[side[0]].bytes) // 2
                      for side in self.sides for width in WIDTHS}

    def layer_bits(self, chosen: dict) -> dict:
        return {layer: (chosen[layer, 0], chosen[layer, 1]) for layer in self.layers}

    def predicted_kl(self, chosen: dict) -> float:
        return self.floor + sum(self.kl[change] for change in chosen.items())

    def bits_per_value(self, chosen: dict) -> float:
        return 16 * (self.least_bytes + sum(self.bytes[change] for change in chosen.items())) / self.fp16_bytes

    def uniform(self) -> list[dict]:
        """Every pair of widths, the same in all layers."""
        return [{side: (k, v)[side[1]] for side in self.sides} for k in WIDTHS for v in WIDTHS]


def greedy(costs: Costs, fits, done=lambda chosen: False) -> dict:
    """From the fewest bits upwards, always the change that saves most KL per byte among those that fit, until done or none is left."""
    chosen = {side: WIDTHS[0] for side in costs.sides}
    while not done(chosen):
        rated = []
        for side in costs.sides:
            for width in WIDTHS[WIDTHS.index(chosen[side]) + 1 :]:
                saved = costs.kl[side, chosen[side]] - costs.kl[side, width]
                if saved > 0 and fits(chosen | {side: width}):
                    rated.append((saved / (costs.bytes[side, width] - costs.bytes[side, chosen[side]]), side, width))
        if not rated:
            break
        _, side, width = max(rated)
        chosen[side] = width
    return chosen


def choose_bits(model, rows: list[torch.Tensor], config: Int4KVConfig, budget: dict, progress: bool = False) -> BudgetReport:
    """Choose config.layer_bits from 3, 4, 5 and 8 bits.

    rows: token ids [1, tokens] of sample text. budget: {"bits": bits per value, scales, exact rows and centres counted at 4096 tokens} or
    {"kl": mean KL in nats}, measured on 2048 tokens, or "tokens" of them. Raises ValueError for a budget that no choice meets.
    """
    _check_budget(budget)
    with bars(progress) as bar:
        meter = Meter(model, _windows(rows, budget.get("tokens", TEXT_TOKENS)), config, bar)
        count = text_config(model.config).num_hidden_layers
        costs = Costs(meter, [i for i in range(count) if EXACT_BITS not in config.for_layer(i, count).bits])
        choose, target = (_within_bits, budget["bits"]) if "bits" in budget else (_within_kl, budget["kl"])
        chosen, kl = choose(costs, meter, target)
        found = _report(costs, meter, chosen, kl, budget.get("bits", costs.bits_per_value(chosen)))
    if progress:
        console = Console()
        console.print(found.table())
        console.print(str(found), soft_wrap=True, highlight=False)
    return found


def _check_budget(budget):
    known = isinstance(budget, dict) and set(budget) <= set(KEYS) and ("bits" in budget) != ("kl" in budget)
    if not known or min(budget.values()) <= 0:
        raise ValueError(f"budget is {budget!r}; accepted: {{'bits': bits per value}} or {{'kl': nats}}, with 'tokens' to measure on, "
                         "all positive")


def _windows(rows, tokens):
    length = min(WINDOW, tokens, max(row.shape[1] for row in rows))
    windows = [piece for row in rows for piece in row.split(length, dim=1) if piece.shape[1] == length]
    return torch.cat(windows[: max(tokens // length, 1)])


def _best_uniform(costs, fits):
    """The uniform choice of the least predicted KL that fits, or None."""
    return min(filter(fits, costs.uniform()), key=costs.predicted_kl, default=None)


def _within_bits(costs, meter, bits):
    """(the choice, its KL): the greedy one, or the best uniform one should that measure better."""

    def fits(chosen):
        return costs.bits_per_value(chosen) <= bits

    least = {side: WIDTHS[0] for side in costs.sides}
    if not fits(least):
        raise ValueError(f"budget is {bits} bits per value; accepted: {costs.bits_per_value(least):.3f} or more for this model and config")
    candidates = [greedy(costs, fits), _best_uniform(costs, fits)]
    measured = meter.kl([costs.layer_bits(chosen) for chosen in candidates], "checking")
    return min(zip(candidates, measured), key=lambda found: found[1])


def _within_kl(costs, meter, target):
    """(the choice, its KL) of the fewest bytes that measures within the target; predictions are corrected by measurements."""
    aim, found = target, []
    for _ in range(ROUNDS):
        chosen = greedy(costs, lambda chosen: True, lambda chosen: costs.predicted_kl(chosen) <= aim)
        if any(chosen == before for before, _ in found):
            break
        kl = meter.kl([costs.layer_bits(chosen)], "checking")[0]
        found.append((chosen, kl))
        aim *= target / kl
    within = [pair for pair in found if pair[1] <= target]
    if not within:
        raise ValueError(f"budget is a KL of {target}; accepted: about {min(kl for _, kl in found):.2g} or more for this model and config")
    return min(within, key=lambda pair: costs.bits_per_value(pair[0]))


def _report(costs, meter, chosen, kl, limit) -> BudgetReport:
    uniform = _best_uniform(costs, lambda other: costs.bits_per_value(other) <= limit)
    uniform_kl = None if uniform is None else meter.kl([costs.layer_bits(uniform)], "comparing")[0]
    pair = None if uniform is None else costs.layer_bits(uniform)[costs.layers[0]]
    config = meter.with_bits(costs.layer_bits(chosen))
    return BudgetReport(config, costs.bits_per_value(chosen), costs.predicted_kl(chosen), kl, pair, uniform_kl)
