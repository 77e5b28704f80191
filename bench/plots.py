"""Plots of the results, and the same drawn again from a JSON: python bench/plots.py bench/results/attend-cpu.json attend.png"""

import argparse
import json
from pathlib import Path

from shapes import model_of, parse_layout
from tables import kind_of

STYLES = {"int4kv": dict(color="black", linewidth=2.2, zorder=3), "int4kv_growing": dict(color="black", linestyle="--")}


def panels(groups: dict, draw, ylabel: str, file) -> None:
    """A panel per group, drawn by draw(axis, rows), beside each other with one legend."""
    if not groups:
        raise ValueError("rows have nothing to draw; accepted: for quantize.py, results with more than one token")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(groups), figsize=(1.5 + 3.6 * len(groups), 4.2), squeeze=False)
    for axis, (name, rows) in zip(axes[0], groups.items()):
        draw(axis, rows)
        axis.set_title(name, fontsize="medium")
        axis.grid(alpha=0.3, which="both")
    axes[0][0].set_ylabel(ylabel)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=5, fontsize="small")
    figure.tight_layout()
    figure.savefig(file, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def grouped(rows: list[dict], name) -> dict:
    """Rows by name(row), in the order they came."""
    groups = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    return groups


def lines(axis, rows: list[dict], x: str, values: str) -> None:
    """A line per contender of row[values], over row[x]; one that is missing in a row leaves a gap."""
    for name in dict.fromkeys(name for row in rows for name in row[values]):
        points = [(row[x], row[values][name]) for row in rows if name in row[values]]
        axis.plot(*zip(*points), marker="o", markersize=3, label=name, **STYLES.get(name, {}))
    places = sorted({row[x] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(places, [f"{n // 1024}K" if n % 1024 == 0 else str(n) for n in places], fontsize="small")
    axis.minorticks_off()


def attend(rows: list[dict], file) -> None:
    """Milliseconds over keys, both logarithmic, a panel per layout and batch."""
    def draw(axis, mine):
        times = [dict(keys=row["keys"], ms={"int4kv": row["int4kv_ms"]} | row["baselines_ms"]) for row in mine]
        lines(axis, times, "keys", "ms")
        axis.set(yscale="log", xlabel="keys")

    groups = grouped(rows, lambda row: f"{model_of(parse_layout(row['layout']))}, batch {row['batch']}")
    panels(groups, draw, "ms per call, cold caches", file)


def quantize(rows: list[dict], file) -> None:
    """Milliseconds over tokens against copying the input, a panel per layout."""
    def draw(axis, mine):
        lines(axis, [row | dict(ms={"int4kv": row["int4kv_ms"], "memcpy": row["memcpy_ms"]}) for row in mine], "tokens", "ms")
        axis.set(yscale="log", xlabel="tokens")

    groups = grouped([row for row in rows if row["tokens"] > 1], lambda row: f"{row['layout']}, {row['dtype']}")
    panels(groups, draw, "ms per layer (K and V), cold caches", file)


def generate(rows: list[dict], file) -> None:
    """Milliseconds per token over the prefix, a panel per model."""
    def draw(axis, mine):
        lines(axis, mine, "prefix", "ms")
        axis.set(ylim=(0, None), xlabel="tokens before")

    panels(grouped(rows, lambda row: row["model"]), draw, "ms per token, end to end", file)


def memory(rows: list[dict], file) -> None:
    """MiB above the loaded model at the peaks of prefill and decoding, over the length, a panel per phase."""
    def draw(axis, mine):
        lines(axis, mine, "length", "mib")
        axis.set(ylim=(0, None), xlabel="tokens")

    phases = []
    for phase in ("prefill", "decode"):
        for length, found in grouped(rows, lambda row: row["length"]).items():
            mib = {row["contender"]: row[f"{phase}_peak_bytes"] / 2**20 for row in found}
            phases.append(dict(phase=f"{found[0]['model']}, {phase}", length=length, mib=mib))
    panels(grouped(phases, lambda row: row["phase"]), draw, "peak above the loaded model, MiB", file)


def serving(rows: list[dict], file) -> None:
    """Tokens held at once and tokens per second over the bytes of the cache, a panel per model and quantity."""
    def draw(axis, mine):
        lines(axis, mine, "cache_mib", "values")
        axis.set(ylim=(0, None), xlabel="cache, MiB")

    points = []
    for name, title in (("tokens_at_once", "tokens at once"), ("tokens_per_s", "tokens/s")):
        for (model, mib), found in grouped(rows, lambda row: (row["model"], row["cache_mib"])).items():
            points.append(dict(panel=f"{model}, {title}", cache_mib=mib, values={row["contender"]: row[name] for row in found}))
    panels(grouped(points, lambda row: row["panel"]), draw, "", file)


def reorder(rows: list[dict], file) -> None:
    """Milliseconds a layer over tokens, a panel per layout and operation."""
    def draw(axis, mine):
        lines(axis, mine, "tokens", "ms")
        axis.set(yscale="log", xlabel="tokens")

    panels(grouped(rows, lambda row: f"{row['layout']}, {row['operation']}"), draw, "ms a layer, cold caches", file)


def draw(rows: list[dict], file) -> None:
    """The plot of these results, by the benchmark that they name."""
    kinds = dict(attend=attend, quantize=quantize, generate=generate, memory=memory, serving=serving, reorder=reorder)
    kinds[kind_of(rows)](rows, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("file", type=Path, help="where to draw, .png or .svg")
    arguments = parser.parse_args()
    draw(json.loads(arguments.results.read_text()), arguments.file)


if __name__ == "__main__":
    main()
