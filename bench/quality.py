"""Perplexity and KL of the bundled models through their caches, decoding token by token on the held-out text.

    python bench/quality.py --json bench/results/quality.json

Rows: the shipped recipe, the recipe with one part left out, and plain abs-max int4. The text is tests/data/heldout.txt.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from machine import facts

import int4kv
from int4kv import models
from int4kv.baselines import PlainInt4Cache
from int4kv.config import text_config
from int4kv.evaluate import quality, windows

TEXT = Path(__file__).parent.parent / "tests" / "data" / "heldout.txt"
RECIPES = {"int4kv": {}, "without the ring": dict(recent=0), "without rotation": dict(rotation=None), "groups of 32": dict(group_size=32),
           "without centre": dict(centre=None)}


def through(model, ids, overrides):
    with int4kv.patched(model, **overrides):
        return quality(model, ids, int4kv.Int4Cache(model.config, **overrides).expect(ids.shape[1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--windows", type=int, help="windows of 2048 tokens to read; default: the whole text")
    arguments = parser.parse_args()
    rows = []
    print(f"{'model':12} {'cache':18} {'perplexity':>10} {'change':>9} {'KL':>9}")
    for name in models.NAMES:
        model, tokenizer = models.load(name, dtype=torch.float32)
        ids = windows(tokenizer, TEXT.read_text(), 2048, arguments.windows)
        for recipe, overrides in (RECIPES | {"plain abs-max": None}).items():
            plain = overrides is None
            found = quality(model, ids, PlainInt4Cache(config=text_config(model.config))) if plain else through(model, ids, overrides)
            rows.append(dict(model=name, cache=recipe, perplexity=found.perplexity, fp_perplexity=found.fp_perplexity, kl=found.kl, tokens=found.tokens))
            print(f"{name:12} {recipe:18} {found.perplexity:>10.4f} {100 * found.change:>+8.2f}% {found.kl:>9.5f}", flush=True)
        print(f"{name:12} {'fp':18} {found.fp_perplexity:>10.4f}")
    if arguments.json:
        command = "python bench/quality.py" + (f" --windows {arguments.windows}" if arguments.windows else "")
        about = facts() | dict(command=command, transformers=transformers.__version__)
        Path(arguments.json).write_text(json.dumps(about | dict(rows=rows), indent=1))


if __name__ == "__main__":
    main()
