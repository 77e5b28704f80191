"""Tables of the results: printed by each script, and in Markdown from a JSON: python bench/tables.py bench/results/attend-cpu.json"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

KINDS = ("attend", "quantize", "generate", "memory", "serving", "reorder")  # the scripts, and row["benchmark"]
# Change in ms per token against the fp cache, percent, and the prefixes it is stated for: arXiv 2605.05699, abstract (Apple M1, fp16).
PAPER = {"Gemma-3 1B": ("-3 .. -8", 256, 4096), "Qwen2.5-1.5B": ("-0.7 .. -2.6", 0, 1024)}


def with_spread(row: dict, name: str, ms: float) -> str:
    """The median, and the 10th to 90th percentile in brackets."""
    low, high = row["spread"][name]
    return f"{ms:.4g} ({low:.4g}-{high:.4g})"


def plain(name: str, form: str = ""):
    """A cell that is a value of the row."""
    return lambda row: format(row[name], form) if name in row else "-"


ATTEND = {
    "layout": plain("layout"), "keys": plain("keys"), "batch": plain("batch"),
    "int4kv, ms": lambda row: with_spread(row, "int4kv", row["int4kv_ms"]),
    "best SDPA, ms": lambda row: with_spread(row, row["best"], row["baselines_ms"][row["best"]]) + " " + row["best"].removeprefix("sdpa_"),
    "ratio": lambda row: f"{row['speedup_over_best']:.2f}" + " (stalled)" * bool(row["stalled"]),
    "over enable_gqa": plain("speedup_over_gqa", ".2f"),
}
ROOFLINE = {
    "layout": plain("layout"), "keys": plain("keys"), "batch": plain("batch"),
    "packed KB": lambda row: f"{row['packed_bytes'] / 1e3:.0f}", "MFLOP": lambda row: f"{row['flops'] / 1e6:.2f}",
    "floor by bytes, ms": plain("bytes_floor_ms", ".3g"), "floor by FLOPs, ms": plain("flops_floor_ms", ".3g"),
    "measured, ms": plain("int4kv_ms", ".3g"), "GB/s": plain("packed_gb_s", ".1f"),
    "of read bandwidth": lambda row: f"{100 * row['share_of_read_bandwidth']:.0f} %",
}
ONE_TOKEN = {
    "layout": plain("layout"), "dtype": plain("dtype"), "batch": plain("batch"), "call, us": plain("call_us", ".2f"),
    "without a token, us": plain("empty_call_us", ".2f"), "kernel, us": plain("kernel_us", ".2f"),
}
PREFILL = {
    "layout": plain("layout"), "dtype": plain("dtype"), "tokens": plain("tokens"),
    "int4kv, ms": lambda row: with_spread(row, "int4kv", row["int4kv_ms"]),
    "memcpy, ms": lambda row: with_spread(row, "memcpy", row["memcpy_ms"]),
    "share of memcpy's speed": plain("share_of_memcpy", ".2f"), "ns a row": plain("ns_per_row", ".0f"),
}
MEMORY = {
    "model": plain("model"), "tokens": plain("length"), "cache": plain("contender"),
    **{name.replace("_", " ") + ", MiB": (lambda row, name=name: f"{row[f'{name}_bytes'] / 2**20:.0f}")
       for name in ("prefill_peak", "after_prefill", "decode_peak", "after_decode")},
    "prefill / dynamic": plain("prefill_over_dynamic", ".2f"), "decode / dynamic": plain("decode_over_dynamic", ".2f"),
}

SERVING = {
    "model": plain("model"), "cache, MiB": plain("cache_mib", "g"), "pages": plain("contender"),
    "tokens held at once": plain("tokens_at_once", ","), "of fp": plain("tokens_at_once_over_fp", ".2f"),
    "requests at once": plain("requests_at_once"), "forward passes": plain("batches"),
    "tokens/s": lambda row: f"{row['tokens_per_s']:.0f} ({row['p10']:.0f}-{row['p90']:.0f})", "over fp": plain("tokens_per_s_over_fp", ".2f"),
    "same text as alone": lambda row: f"{row['same_as_alone']} of {row['requests']}",
}


def generate_columns(rows: list[dict]) -> dict:
    """A column per contender that ran: milliseconds per token and, in brackets, those inside the cache and the attention function."""
    def cell(name):
        return lambda row: f"{row['ms'][name]:.1f} ({row['cache_and_attention_ms'][name]:.2f})" if name in row["ms"] else "-"

    names = dict.fromkeys(name for row in rows for name in row["ms"])
    return {"model": plain("model"), "prefix": plain("prefix"), **{name: cell(name) for name in names},
            "int4kv to dynamic, %": lambda row: change(row, "dynamic"), "the paper's, %": paper_change,
            "to the best fp, %": lambda row: f"{change(row, row['best_fp'])} {row['best_fp'] or ''}"}


def reorder_columns(rows: list[dict]) -> dict:
    """Milliseconds and bytes of each contender, and of the ratio to int4kv the one that is hardest to beat."""
    def megabytes(name):
        return lambda row: " / ".join(f"{row['bytes'][name][kind] / 1e6:.2f}" for kind in ("median", "most"))

    columns = {name: plain(name) for name in ("layout", "operation", "beams", "tokens")}
    for name in rows[0]["ms"]:
        columns |= {f"{name}, ms": lambda row, name=name: with_spread(row, name, row["ms"][name]), f"{name}, MB": megabytes(name)}
    return columns | {"best DynamicCache over int4kv": lambda row: f"{min(v for n, v in row['speedup_over'].items() if n != 'int4kv'):.2f}"}


def change(row: dict, other: str | None) -> str:
    """int4kv's ms per token against another contender's, in percent, by medians and paired by rounds; negative is faster."""
    over, paired = row["speedup_over"].get(other), row["paired_speedup_over"].get(other)
    if over is None:
        return "-"
    return f"{100 * (1 / over - 1):+.1f}" + (f" ({100 * (1 / paired['median'] - 1):+.1f})" if paired else "")


def paper_change(row: dict) -> str:
    """What the paper states for this model and prefix, where it does."""
    stated, first, last = PAPER.get(row["model"], ("-", 1, 0))
    return stated if first <= row["prefix"] <= last else "-"


def kind_of(rows) -> str:
    """The script that wrote these results. Raises ValueError for anything else."""
    if not isinstance(rows, list) or not rows or rows[0].get("benchmark") not in KINDS:
        raise ValueError(f"results are a {type(rows).__name__} without the name of their benchmark; "
                         f"accepted: lists written by {', '.join(KINDS)}")
    return rows[0]["benchmark"]


def tables_of(rows: list[dict]) -> list[tuple]:
    """(title, columns, rows) of each table that these results make."""
    kind = kind_of(rows)
    if kind == "quantize":
        one, many = ([row for row in rows if (row["tokens"] == 1) == single] for single in (True, False))
        return [(title, *rest) for title, *rest in (("one token", ONE_TOKEN, one), ("prefill", PREFILL, many)) if rest[1]]
    if kind == "generate":
        return [("ms per token (in cache and attention); changes by medians (paired by rounds)", generate_columns(rows), rows)]
    if kind == "serving":
        return [("requests of mixed lengths, equal bytes for the cache", SERVING, rows)]
    if kind == "reorder":
        return [("sequences of a batch that move, a layer: ms, and MB written by the median and the costliest call", reorder_columns(rows), rows)]
    if kind == "memory":
        return [("above the loaded model", MEMORY, rows)]
    return [("one decode step of attention", ATTEND, rows), ("roofline", ROOFLINE, rows)]


def show(rows: list[dict]) -> None:
    """Print all tables of the results."""
    about = rows[0]["about"]
    console = Console(width=180)
    for title, columns, mine in tables_of(rows):
        table = Table(*columns, title=f"{title}; {about['device_name']}, {about['threads']} threads, torch {about['torch']}, {about['date']}")
        for row in mine:
            table.add_row(*(cell(row) for cell in columns.values()))
        console.print(table)


def markdown(rows: list[dict]) -> str:
    """The same tables, in Markdown."""
    lines = []
    for _, columns, mine in tables_of(rows):
        cells = [list(columns), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in mine)]
        lines += [f"| {' | '.join(line)} |" for line in cells] + [""]
    about = rows[0]["about"]
    threads = f"{about['threads']} threads ({about['flags']})"
    return "\n".join(lines + [f"`{about['command']}`, {about['date']}, {about['device_name']}, {threads}, torch {about['torch']}"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    print(markdown(json.loads(parser.parse_args().results.read_text())))


if __name__ == "__main__":
    main()
