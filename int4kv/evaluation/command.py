"""int4kv eval: recipes side by side on models and a text of the user's choice."""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..models import HELDOUT

RECIPES = "fp, presets, folders with int4kv.json; fields to change after a colon: default:bits=5/4,recent=0"
LEGEND = """Every key and value beyond a query's newest exact tokens was read from the packed codes, {chunk} tokens a forward pass.
±: half of a 95 % interval over windows. KL in 1/1000 nats. bits: everything held, over keys and values, at 4096 and at 32768 tokens.
KL 99.9 %: of single tokens, the worst in a thousand. top-1: the same most likely token."""


def evaluate_recipes(
    model: Annotated[list[str], typer.Option(help="A folder, a hub id, or a bundled model; may be given several times.")],
    text: Annotated[Path, typer.Option(help="A text file to read.", show_default="a bundled one")] = HELDOUT,
    recipes: Annotated[str, typer.Option(help=RECIPES)] = "default,3bit",
    recipe_file: Annotated[Path | None, typer.Option(help='More of them: JSON {"name": {"field": value}}.')] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Windows of text to read; all of it if left out.")] = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a window.")] = 2048,
    batch: Annotated[int, typer.Option(min=1, help="Windows in a forward pass.")] = 4,
    chunk: Annotated[int, typer.Option(min=1, help="Tokens in a forward pass; 1 decodes token by token.")] = 128,
    needle: Annotated[bool, typer.Option("--needle", help="Also hide needles in texts of up to --length tokens.")] = False,
    divergence: Annotated[bool, typer.Option("--divergence", help="Also continue the first half of every window, greedily.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Plot KL against bits here; needles go beside it.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda, ...")] = "auto",
):
    """Perplexity, KL, agreement and bits of recipes that read and write a packed cache, against the model's own."""
    from .assessment import Assessment
    from ..cli import console, errors, fail, pick_device

    where = pick_device(device)
    source = _read(text, fail)
    _check_folders({"--json": json_file, "--plot": plot}, fail)
    todo = Assessment(_recipes(recipes, recipe_file, fail), length, windows, batch, chunk, needle=needle, divergence=divergence)
    found = dict(quality=[], needle=[], divergence=[])
    for name in model:
        for kind, rows in _assess(name, where, todo, source, errors, fail):
            found[kind] += rows
            _show(kind, rows, console)
    console.print(LEGEND.format(chunk=chunk), style="dim", highlight=False)
    settings = dict(text=str(text), length=length, batch=batch, chunk=chunk)
    _write(settings | found, json_file, plot, console)


def _recipes(text, file, fail) -> list:
    from .recipes import parse_recipes, read_recipe_file

    chosen = []
    for option, value, parse in (("--recipes", text, parse_recipes), ("--recipe-file", file, read_recipe_file)):
        try:
            chosen += parse(value) if value else []
        except (ValueError, TypeError) as error:
            fail(f"{option}: {error}")
    if not chosen:
        fail("--recipes is empty; accepted: at least one recipe, here or in --recipe-file")
    return chosen


def _read(file, fail) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError) as error:
        fail(f"--text is {str(file)!r}, which could not be read: {error}")


def _check_folders(files, fail) -> None:
    for option, file in files.items():
        if file is not None and not file.parent.is_dir():
            fail(f"{option} is {str(file)!r}; accepted: a file in a folder that exists")


def _assess(name, where, todo, source, errors, fail):
    """What one model gives; anything that its user got wrong is told in one sentence."""
    from ..streaming import load_or_fail

    network, tokenizer = load_or_fail(name, where, fail)
    try:
        with _progress(errors) as progress:
            yield from todo.run(name, network, tokenizer, source, progress)
    except ValueError as error:
        fail(f"{name}: {error}")


@contextmanager
def _progress(console):
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bars:

        def task(description, total):
            number = bars.add_task(description, total=total)
            return lambda: bars.advance(number)

        yield task


def _show(kind, rows, console) -> None:
    from .findings import divergence_table, needle_table, quality_table

    table = dict(quality=quality_table, needle=needle_table, divergence=divergence_table)[kind]
    console.print(table(rows))


def _write(found, json_file, plot, console) -> None:
    from .plots import needle_file, plot_needles, plot_quality

    if json_file:
        json_file.write_text(json.dumps(found, indent=1))
    if plot:
        plot_quality(found["quality"], plot)
        console.print(f"Plot: {plot}", highlight=False)
    if plot and found["needle"]:
        plot_needles(found["needle"], needle_file(plot))
        console.print(f"Needles: {needle_file(plot)}", highlight=False)
