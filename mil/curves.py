"""What a run logged over its steps, from the csv files that it left."""

import csv
from pathlib import Path

from matplotlib.figure import Figure

from papsmear.errors import InputError

COLOURS = ("#7a3e9d", "#e08a00", "#2c6e49", "#0a84ff")


def read_metrics(run: Path) -> dict[str, dict[int, float]]:
    """Value by step of each figure that a run logged; InputError where it logged none.

    A run that was taken up again has a file for each start; the later ones count where both have a step.
    """
    files = sorted(run.glob("logs/version_*/metrics.csv"), key=lambda file: int(file.parent.name.rpartition("_")[2]))
    if not files:
        raise InputError(f"{run}/logs: no metrics.csv in it; lightning fit writes it")
    values: dict[str, dict[int, float]] = {}
    for file in files:
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                for name, text in row.items():
                    if text and name != "step":
                        values.setdefault(name, {})[int(row["step"])] = float(text)
    return values


def loss_figure(run: Path, inches: tuple[float, float] = (4.6, 3.0)) -> Figure:
    """The losses of a run over its steps."""
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.subplots()
    curves = {name: points for name, points in read_metrics(run).items() if name.endswith("loss")}
    for (name, points), colour in zip(sorted(curves.items()), COLOURS * len(curves), strict=False):
        steps = sorted(points)
        axes.plot(steps, [points[step] for step in steps], label=name, color=colour, linewidth=1.8)
    axes.set_xlabel("training step")
    axes.set_ylabel("loss")
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9)
    return plain(figure)


def bar_figure(shares: dict[str, float], label: str, inches: tuple[float, float] = (4.6, 3.0)) -> Figure:
    """Shares of 1 as bars in percent, the first on top."""
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.subplots()
    names = list(reversed(shares))
    bars = axes.barh(names, [100 * shares[name] for name in names], color=COLOURS[0], height=0.55)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_xlabel(label)
    axes.margins(x=0.25)
    return plain(figure)


def plain(figure: Figure) -> Figure:
    """The figure in the look of all pages: no box, a pale grid."""
    axes = figure.axes[0]
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return figure
