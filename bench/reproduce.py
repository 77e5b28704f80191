"""The papers' tables again: the same recipes through int4kv's own ops, on the bundled models or on the real ones.

    python bench/reproduce.py --table bergach-qwen
    python bench/reproduce.py --table saw-bdr --model Qwen/Qwen3-4B-Thinking-2507 --text wikitext.txt
    python bench/reproduce.py --table turboquant --model Qwen/Qwen2.5-7B-Instruct --text wikitext.txt --json out.json

Each row stands beside the number that its paper gives, and what differs. Every key and value that a query reads comes from the codes.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from machine import facts
from papers import TABLES, Row
from rich.console import Console
from rich.table import Table

import int4kv
from int4kv.evaluation.evaluate import evaluate, windows
from int4kv.evaluation.findings import quality_rows
from int4kv.models import NAMES
from int4kv.progress import bars
from int4kv.evaluation.recipes import Recipe
from int4kv.streaming import load_or_fail

ROOT = Path(__file__).parent.parent
TEXT, CALIBRATION_TEXT = ROOT / "tests" / "data" / "heldout.txt", ROOT / "int4kv" / "models" / "heldout.txt"
COLUMNS = ("recipe", "bits, 4k", "perplexity", "change", "KL", "top-1", "the paper", "what differs")


def recipe_of(row: Row, model, tokenizer, calibration_text: str) -> Recipe:
    """The row's config, calibrated on the sample text when it asks for that."""
    config = int4kv.Int4KVConfig(**row.recipe)
    if row.calibrate is not None:
        config = int4kv.calibrate(model, calibration_text, tokenizer=tokenizer, config=config, **row.calibrate)
    return Recipe(row.name, config)


def measure(table: str, name: str, arguments) -> list[dict]:
    """A dictionary per row of a table on one model: what was found, and what the paper says."""
    model, tokenizer = load_or_fail(name, arguments.device, fail)
    ids = windows(tokenizer, Path(arguments.text).read_text(), arguments.length, arguments.windows)
    rows = TABLES[table].rows
    with bars(True) as bar:
        advance = bar(f"{name}: calibrating", len(rows))
        recipes = []
        for row in rows:
            recipes.append(recipe_of(row, model, tokenizer, Path(arguments.calibration_text).read_text()))
            advance()
        advance = bar(f"{name}: reading", len(ids) * len(rows))
        found = {recipe.name: evaluate(model, ids, [recipe], batch=arguments.batch)[recipe.name] for recipe in recipes if not advance()}
    return [measured | dict(paper=row.paper, differs=row.differs) for row, measured in zip(rows, quality_rows(name, model, recipes, found))]


def cells(row: dict) -> list[str]:
    return [row["recipe"], f"{row['bits']['4096']:.2f}", f"{row['perplexity']:.4g}", f"{100 * row['change']:+.3g} %", f"{row['kl']:.2g}",
            f"{100 * row['agreement']:.1f} %", row["paper"], row["differs"]]


def show(rows: list[dict], title: str) -> Table:
    table = Table(*COLUMNS, title=title, title_justify="left")
    for row in rows:
        table.add_row(*cells(row))
    return table


def markdown(about: dict, table: str, rows: list[dict]) -> str:
    """The table of every model, below what the paper is and how this was made."""
    lines = [f"# {table}", "", TABLES[table].about, "",
             f"`{about['command']}`, {about['date']}, {about['machine']}, torch {about['torch']}, transformers {about['transformers']}, float32"]
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        lines += ["", f"## {name}: {mine[0]['tokens']} tokens, perplexity {mine[0]['fp_perplexity']:.3f} without a cache", ""]
        lines += [f"| {' | '.join(line)} |" for line in (COLUMNS, ["---"] * len(COLUMNS), *map(cells, mine))]
    return "\n".join(lines) + "\n"


def fail(message: str):
    raise SystemExit(f"error: {message}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=list(TABLES), required=True)
    parser.add_argument("--model", action="append", help="a folder, a hub id or a bundled model; may be given several times (both bundled)")
    parser.add_argument("--text", default=TEXT, help="text to measure on")
    parser.add_argument("--calibration-text", default=CALIBRATION_TEXT, help="text to calibrate on, another one")
    parser.add_argument("--windows", type=int, default=4, help="windows of text (4)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a window (2048)")
    parser.add_argument("--batch", type=int, default=4, help="windows read at a time (4)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--markdown", help="write the tables here")
    return parser.parse_args()


def main():
    arguments, rows = parse(), []
    console = Console(width=200)
    console.print(TABLES[arguments.table].about, highlight=False)
    for name in arguments.model or NAMES:
        found = measure(arguments.table, name, arguments)
        console.print(show(found, f"{arguments.table}: {name}, {found[0]['tokens']} tokens"))
        rows += found
    models = "".join(f" --model {name}" for name in arguments.model or ())
    command = f"python bench/reproduce.py --table {arguments.table}{models} --windows {arguments.windows} --length {arguments.length}"
    about = facts() | dict(command=command, transformers=transformers.__version__, threads=torch.get_num_threads())
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(about | dict(rows=rows), indent=1))
    if arguments.markdown:
        Path(arguments.markdown).write_text(markdown(about, arguments.table, rows))


if __name__ == "__main__":
    main()
