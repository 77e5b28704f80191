"""What every script does with its rows: print them, write them, draw them."""

import json
from pathlib import Path

import plots
import tables


def add_options(parser) -> None:
    """--json and --plot."""
    parser.add_argument("--json", type=Path, help="write the rows here, a list")
    parser.add_argument("--plot", type=Path, help="draw them here")


def finish(rows: list[dict], arguments) -> None:
    """Tables on the terminal, and the files that were asked for."""
    if not rows:
        raise SystemExit("nothing was measured: none of the contenders can run here")
    tables.show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.plot:
        plots.draw(rows, arguments.plot)
