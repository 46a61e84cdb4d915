"""The figures of tests and cross-validations, drawn with matplotlib's object interface."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_curve

from papsmear.mil.calibration import Bin
from papsmear.mil.curves import COLOURS, plain
from papsmear.mil.verdicts import Verdicts

_GRID = np.linspace(0, 1, 201)


def roc_figure(rows: Mapping[str, Verdicts]) -> Figure:
    """Sensitivity against 1 - specificity of some heads, and where each stands at its operating point.

    Of several folds it is the mean of their curves (vertical averaging; Fawcett 2006, algorithm 3).
    """
    figure = Figure(figsize=(4.6, 4.3), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color="#5b6878", linewidth=1)
    for number, (name, verdicts) in enumerate(rows.items()):
        colour = COLOURS[number % len(COLOURS)]
        folds = verdicts.by_fold().values()
        if len(folds) == 1:
            false_rate, true_rate, _ = roc_curve(verdicts.labels, verdicts.log_odds, drop_intermediate=False)
        else:
            curves = [roc_curve(verdicts.labels[of], verdicts.log_odds[of], drop_intermediate=False) for of in folds]
            false_rate, true_rate = _GRID, np.mean([_at(_GRID, x, y) for x, y, _ in curves], axis=0)
        axes.step(false_rate, true_rate, where="post", color=colour, linewidth=1.8, label=name)
        called, positive = verdicts.called, verdicts.labels == 1
        at = (called[~positive].mean(), called[positive].mean())
        axes.plot(*at, "o", color=colour, markersize=8, markeredgecolor="white")
    axes.set_xlabel("1 - specificity")
    axes.set_ylabel("sensitivity")
    axes.set_aspect("equal")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    if len(rows) > 1:
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    return plain(figure)


def _at(grid: np.ndarray, false_rate: np.ndarray, true_rate: np.ndarray) -> np.ndarray:
    """The sensitivity reached at each 1 - specificity of a grid: the highest point not right of it."""
    return np.asarray(true_rate[np.searchsorted(false_rate, grid + 1e-12, "right") - 1])


def reliability_figure(bins: Sequence[Bin]) -> Figure:
    """The share of positive slides against their mean probability, with Wilson intervals; on the line, both agree."""
    figure = Figure(figsize=(4.6, 4.3), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color="#5b6878", linewidth=1)
    for bin_ in bins:
        axes.plot([bin_.probability] * 2, bin_.interval_95, color=COLOURS[0], linewidth=1.2, alpha=0.6)
        axes.plot(bin_.probability, bin_.positive, "o", color=COLOURS[0], markersize=5 + 2 * np.log2(bin_.slides))
        where = (bin_.probability, bin_.positive)
        axes.annotate(str(bin_.slides), where, (9, -3), textcoords="offset points", fontsize=8)
    axes.set_xlabel("mean probability")
    axes.set_ylabel("share of positive slides")
    axes.set_aspect("equal")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    return plain(figure)


def auc_figure(rows: Mapping[str, Mapping[int, float]], tuning_fold: int) -> Figure:
    """The AUC of each fold as a dot, that of the tuning fold hollow, and the mean of the others as a bar."""
    figure = Figure(figsize=(6.4, 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for row, auc_of in enumerate(rows.values()):
        others = [auc for fold, auc in auc_of.items() if fold != tuning_fold] or list(auc_of.values())
        axes.barh(row, np.mean(others), height=0.55, color=COLOURS[0], alpha=0.25)
        for fold, auc in auc_of.items():
            face = "white" if fold == tuning_fold else COLOURS[0]
            axes.plot(auc, row, "o", color=COLOURS[0], markerfacecolor=face, markersize=6)
        axes.annotate(f"{np.mean(others):.3f}", (1.02, row), va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.axvline(0.5, color="#5b6878", linewidth=1, linestyle=":")
    axes.invert_yaxis()
    axes.set_xlim(min(0.4, min(auc for auc_of in rows.values() for auc in auc_of.values()) - 0.05), 1.1)
    axes.set_xlabel("AUC")
    return plain(figure)


def pixels(figure: Figure) -> Image.Image:
    """A figure as a picture, for W&B."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer)
