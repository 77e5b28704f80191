"""Plots of an evaluation: KL against bits per value, and needle heat maps."""

from pathlib import Path

COLOURS, MARKERS = "tab10", "osD^v"
AT = "4096"  # tokens at which the bits are counted


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(pyplot, figure, file) -> None:
    figure.savefig(file, dpi=130, bbox_inches="tight")
    pyplot.close(figure)


def plot_quality(rows: list[dict], file) -> None:
    """Mean KL over bits per value, a panel per model; rows as findings.quality_rows makes them. Recipes without KL are left out."""
    pyplot = _pyplot()
    names, models = list(dict.fromkeys(r["recipe"] for r in rows if r["kl"] > 0)), list(dict.fromkeys(r["model"] for r in rows))
    figure, axes = pyplot.subplots(1, len(models), figsize=(5.5 * len(models), 4.5), sharey=True, squeeze=False)
    for axis, model in zip(axes[0], models):
        for row in (r for r in rows if r["model"] == model and r["kl"] > 0):
            _point(axis, row, *_style(pyplot, names.index(row["recipe"])))
        axis.set(title=model, xlabel=f"bits per value at {AT} tokens, everything counted", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0][0].set_ylabel("mean KL, nats (95 % over windows)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2 * len(models), fontsize="small")
    _save(pyplot, figure, file)


def _style(pyplot, index: int) -> tuple:
    colours = pyplot.get_cmap(COLOURS).colors
    return colours[index % len(colours)], MARKERS[index // len(colours) % len(MARKERS)]


def _point(axis, row, colour, marker) -> None:
    low, high = row["kl_interval"]
    reach = None if low is None else [[min(row["kl"] - low, 0.9 * row["kl"])], [high - row["kl"]]]
    axis.errorbar(row["bits"][AT], row["kl"], yerr=reach, fmt=marker, color=colour, label=row["recipe"], markersize=5, elinewidth=0.8, alpha=0.8)


def plot_needles(rows: list[dict], file) -> None:
    """A heat map per model and recipe, length across, depth down, the share returned in every cell; rows of findings.needle_rows."""
    pyplot = _pyplot()
    models = list(dict.fromkeys(r["model"] for r in rows))
    grid = [[r for r in rows if r["model"] == model] for model in models]
    columns = max(map(len, grid))
    figure, axes = pyplot.subplots(len(models), columns, figsize=(2.5 * columns + 0.6, 2.8 * len(models)), squeeze=False)
    for line, found in zip(axes, grid):
        for axis, row in zip(line, found):
            _heat_map(axis, row)
        line[0].set_ylabel(f"{found[0]['model']}\ndepth")
        for axis in line[len(found) :]:
            axis.axis("off")
    figure.tight_layout()
    _save(pyplot, figure, file)


def _heat_map(axis, row) -> None:
    score = list(zip(*row["score"]))
    axis.imshow(score, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axis.set_title(row["recipe"], fontsize="small")
    axis.set_xticks(range(len(row["lengths"])), row["lengths"])
    axis.set_yticks(range(len(row["depths"])), [f"{100 * depth:.0f} %" for depth in row["depths"]])
    for y, line in enumerate(score):
        for x, value in enumerate(line):
            axis.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize="small")


def needle_file(file) -> Path:
    """Where the heat maps go beside the plot: quality.png -> quality-needle.png."""
    return Path(file).with_stem(Path(file).stem + "-needle")
