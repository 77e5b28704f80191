"""The whole quality table: both bundled models, every recipe, decoded through the packed cache on the held-out text.

    python bench/quality.py --json bench/results/quality.json --plot bench/results/quality.png --markdown bench/results/quality-table.md

Recipes are presets with fields changed, as `int4kv eval --recipes` takes them; the text is tests/data/heldout.txt. Four more are calibrated
on the demonstration's text, two of them with bits per layer under a budget. The models are read in two processes of one thread.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import transformers
from machine import facts
from rich.console import Console

import int4kv
from int4kv import models
from int4kv.evaluation.assessment import Assessment
from int4kv.evaluation.findings import divergence_table, needle_table, quality_cells, quality_table
from int4kv.evaluation.plots import needle_file, plot_needles, plot_quality
from int4kv.evaluation.recipes import Recipe, parse_recipes

TEXT = Path(__file__).parent.parent / "tests" / "data" / "heldout.txt"
PARTS = ("codebook=uniform", "codebook=asymmetric", "codebook=absmax", "group_size=64", "group_size=32", "rotation=none", "rotation=srft",
         "rotation=householder", "hadamard_block=16", "hadamard_block=64", "recent=0", "recent=128", "sinks=4", "centre=none", "v_centre=prompt")
RECIPES = ["default", "3bit", "k5v4", "k8v4", *(f"default:{part}" for part in PARTS), "3bit:recent=0"]
RECIPES += ["saw-int4", "saw-int4:centre=prompt", "bergach", "bergach:centre=prompt", "turboquant-4bit", "turboquant-3bit"]
RECIPES += ["default:codebook=absmax,rotation=none,centre=none,recent=0"]
HEADS = ("recipe", "bits at 4096", "at 32768", "perplexity", "change, %", "KL, 1e-3 nats", "KL 99.9 %", "top-1, %", "KL to the first, 1e-3 nats")
TABLES = dict(quality=quality_table, needle=needle_table, divergence=divergence_table)


def calibrated(model, tokenizer) -> list[Recipe]:
    """The default with centres from other text; finer keys at the same bytes; bits per layer at those bytes, and for a KL of 0.001 there."""
    text = models.HELDOUT.read_text()
    centred = int4kv.calibrate(model, text, tokenizer=tokenizer)
    recipes = [Recipe("calibrated", centred), Recipe("calibrated k5v3", centred.with_overrides(bits=(5, 3)))]
    for name, budget in (("its bytes, by layer", {"bits": recipes[0].bits_per_value(model, 4096)}), ("KL 0.001, by layer", {"kl": 0.001})):
        recipes.append(Recipe(f"calibrated, {name}", int4kv.calibrate(model, text, tokenizer=tokenizer, budget=budget)))
    return recipes


def assess(name: str, recipes: str, with_calibrated: bool, options: dict) -> list:
    """[(kind, rows)] of one model, in a process of its own."""
    torch.set_num_threads(1)
    model, tokenizer = models.load(name, dtype=torch.float32)
    chosen = parse_recipes(recipes) + (calibrated(model, tokenizer) if with_calibrated else [])
    return list(Assessment(chosen, **options).run(name, model, tokenizer, TEXT.read_text()))


def assess_both(recipes: str, with_calibrated: bool, options: dict) -> dict:
    found = {kind: [] for kind in TABLES}
    with ProcessPoolExecutor(len(models.NAMES), mp_context=multiprocessing.get_context("spawn")) as pool:
        for parts in pool.map(assess, models.NAMES, *([value] * len(models.NAMES) for value in (recipes, with_calibrated, options))):
            for kind, rows in parts:
                found[kind] += rows
                Console(width=140).print(TABLES[kind](rows))
    return found


def markdown(rows: list[dict]) -> str:
    lines = []
    for name in models.NAMES:
        mine = [row for row in rows if row["model"] == name]
        about = f"{mine[0]['windows']} windows, {mine[0]['tokens']} tokens, perplexity {mine[0]['fp_perplexity']:.3f} without a cache"
        lines += [f"### {name}: {about}", ""]
        lines += [f"| {' | '.join(cells)} |" for cells in (HEADS, ["---"] * len(HEADS), *(quality_cells(row, mine[0]) for row in mine))] + [""]
    return "\n".join(lines)


def write(found: dict, about: dict, arguments) -> None:
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(about | found, indent=1))
    if arguments.markdown:
        Path(arguments.markdown).write_text(f"`{about['command']}`, {about['date']}, {about['machine']}, torch {about['torch']}, "
                                            f"transformers {about['transformers']}, float32\n\n{markdown(found['quality'])}")
    if arguments.plot:
        plot_quality(found["quality"], arguments.plot)
    if arguments.plot and found["needle"]:
        plot_needles(found["needle"], needle_file(arguments.plot))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--json", "--plot", "--markdown"):
        parser.add_argument(option, help="write the results here")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="as int4kv eval takes them")
    parser.add_argument("--no-calibrated", action="store_true", help="leave the calibrated recipes out")
    parser.add_argument("--windows", type=int, default=6, help="windows of text to read")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a window")
    parser.add_argument("--needle", action="store_true", help="also hide needles")
    parser.add_argument("--divergence", action="store_true", help="also continue prompts")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    options = {name: getattr(arguments, name) for name in ("windows", "length", "needle", "divergence")}
    found = assess_both(arguments.recipes, not arguments.no_calibrated, options)
    seconds = round(time.perf_counter() - begin)
    command = f"python bench/quality.py --windows {arguments.windows}"
    write(found, facts() | dict(command=command, transformers=transformers.__version__, seconds=seconds, length=arguments.length), arguments)
    print(f"{seconds} s")


if __name__ == "__main__":
    main()
