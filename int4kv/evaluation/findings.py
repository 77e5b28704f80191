"""What an evaluation found, as rows of plain numbers for JSON and for plots, and as tables to read."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

AT = (4096, 32768)  # tokens at which bits per value are counted


def quality_rows(model_name: str, model, recipes, found: dict) -> list[dict]:
    """One row per recipe; found: name -> Quality. Intervals are [low, high], 95 % over windows; differences are to the first recipe."""
    first = found[recipes[0].name]
    return [_quality_row(model_name, model, recipe, found[recipe.name], first) for recipe in recipes]


def _quality_row(model_name, model, recipe, quality, first) -> dict:
    config = None if recipe.config is None else recipe.config.to_dict()
    bits = {str(tokens): recipe.bits_per_value(model, tokens) for tokens in AT}
    row = dict(model=model_name, recipe=recipe.name, config=config, bits=bits, tokens=quality.tokens, windows=len(quality.nll),
               perplexity=quality.perplexity, fp_perplexity=quality.fp_perplexity, kl_tail=quality.kl_tail)
    for name, found in (("change", quality.change_estimate), ("kl", quality.kl_estimate), ("agreement", quality.agreement_estimate),
                        ("kl_difference", quality.kl_difference(first))):
        row |= {name: found.mean, f"{name}_interval": [found.low, found.high]}
    return row


def needle_rows(model_name: str, found: dict, depths) -> list[dict]:
    """One row per recipe: lengths, depths and the score of each, [lengths][depths]."""
    return [dict(model=model_name, recipe=name, lengths=list(r.lengths), depths=list(depths), score=r.score.tolist(), mean=r.score.mean().item())
            for name, r in found.items()]


def divergence_rows(model_name: str, found: dict) -> list[dict]:
    return [dict(model=model_name, recipe=name, tokens=d.tokens, median=d.median, never=d.never, first=d.first.tolist())
            for name, d in found.items()]


def quality_table(rows: list[dict]) -> Table:
    """All rows of one model, in the order given; intervals below the values, so that 80 columns are enough."""
    table = _table(f"{rows[0]['model']}: {rows[0]['windows']} windows, {rows[0]['tokens']} tokens")
    table.add_column("recipe", overflow="fold", max_width=26)
    for name in ("bits\n4k", "bits\n32k", "perple-\nxity", "change\n%", "KL\n/1000", "KL\n99.9 %", "top-1\n%", "KL to\nfirst"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell.replace(" ± ", "\n±") for cell in quality_cells(row, rows[0])))
    return table


def quality_cells(row: dict, first: dict) -> list[str]:
    """A row of the table as text."""
    bits = [f"{row['bits'][str(at)]:.2f}" for at in AT]
    spread = [_spread(row, name, factor, form) for name, factor, form in (("change", 100, "+.2f"), ("kl", 1e3, ".2f"), ("agreement", 100, ".1f"))]
    to_first = "" if row is first else _spread(row, "kl_difference", 1e3, "+.2f")
    return [row["recipe"], *bits, _number(row["perplexity"], ".3f"), *spread[:2], f"{row['kl_tail']:.2f}", spread[2], to_first]


def _table(title: str) -> Table:
    return Table(title=f"\n{title}", title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1), min_width=76)


def needle_table(rows: list[dict]) -> Table:
    """Mean over depths, a column per length."""
    table = _table(f"{rows[0]['model']}: share of the needle returned")
    for name in ("recipe", *(f"{length} tokens" for length in rows[0]["lengths"])):
        table.add_column(name)
    for row in rows:
        table.add_row(row["recipe"], *(f"{100 * sum(scores) / len(scores):.0f} %" for scores in row["score"]))
    return table


def divergence_table(rows: list[dict]) -> Table:
    """Where greedy continuations part, a line per recipe."""
    table = _table(f"{rows[0]['model']}: {len(rows[0]['first'])} prompts, continued greedily by {rows[0]['tokens']} tokens")
    for name in ("recipe", "first other token, median", "no other token"):
        table.add_column(name)
    for row in rows:
        table.add_row(row["recipe"], f"{row['median']:g}", f"{100 * row['never']:.0f} %")
    return table


def _spread(row: dict, name: str, factor: float, form: str) -> str:
    """'mean ± half of the interval'."""
    low, high = row[f"{name}_interval"]
    mean = _number(factor * row[name], form)
    return mean if low is None else f"{mean} ± {_number(factor * (high - low) / 2, form.strip('+'))}"


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if abs(value) < 1000 else f"{value:.3g}"
