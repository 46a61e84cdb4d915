"""The report's figures, drawn with matplotlib's object interface: no display, no state shared with the caller."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from papsmear.probes.classes import CellClass
from papsmear.probes.fewshot import Shot
from papsmear.probes.protocol import Score
from papsmear.probes.results import LINEAR, PROTOTYPE

INK, SOFT, LINE = "#1d2733", "#5b6878", "#dfe4ea"
COLOURS = ("#7a3e9d", "#e08a00", "#2a7f9e", "#b3436b", "#5a8f3c", "#8a6d3b", "#4b5fb5", "#7f8c99")
SHADES = "Purples"


def colour(position: int) -> str:
    """The colour of the encoder at that position, the same in every figure."""
    return COLOURS[position % len(COLOURS)]


def weighted_f1_bars(scores: Mapping[str, Score]) -> Figure:
    """One set's weighted F1 of each encoder: mean and sd as bar and whisker, single runs as dots."""
    figure = Figure(figsize=(5.6, 0.9 + 0.5 * len(scores)), layout="constrained")
    axes = figure.subplots()
    for i, score in enumerate(scores.values()):
        runs = 100 * np.array(score.weighted_f1.runs)
        mean, sd = 100 * score.weighted_f1.mean, 100 * score.weighted_f1.sd
        axes.barh(i, mean, height=0.62, color=colour(i), alpha=0.85, xerr=sd, error_kw={"ecolor": INK, "capsize": 3})
        axes.plot(runs, np.full(len(runs), i), "o", color="white", markeredgecolor=INK, markersize=3.5, alpha=0.9)
        right = (max(mean + sd, runs.max()), i)
        axes.annotate(f"{mean:.1f}", right, (5, 0), textcoords="offset points", va="center", color=INK)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("weighted F1, %")
    plain(axes)
    return figure


def f1_by_k(scores: Mapping[str, Score]) -> Figure:
    """One set's weighted F1 against k, a line with its sd for each encoder; the chosen k is ringed."""
    figure = Figure(figsize=(5.6, 3.0), layout="constrained")
    axes = figure.subplots()
    for i, (name, score) in enumerate(scores.items()):
        ks = list(score.by_k)
        means = 100 * np.array([score.by_k[k].mean for k in ks])
        sds = 100 * np.array([score.by_k[k].sd for k in ks])
        axes.plot(ks, means, "o-", color=colour(i), markersize=3, linewidth=1.5, label=name)
        axes.fill_between(ks, means - sds, means + sds, color=colour(i), alpha=0.12, linewidth=0)
        axes.plot(score.k, 100 * score.weighted_f1.mean, "o", markersize=9, markerfacecolor="none", color=colour(i))
    axes.set_xscale("log")
    axes.set_xticks(ks, map(str, ks))
    axes.minorticks_off()
    axes.set_xlabel("k")
    axes.set_ylabel("weighted F1, %")
    plain(axes)
    return figure


def few_shot_curves(shots: Mapping[str, list[Shot]]) -> Figure:
    """One set's weighted F1 against the number of training cells: a share of them (left), n of each class (right)."""
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, ending, title in zip(
        panels, ("%", "shot"), ("share of the training part", "cells of each class"), strict=True
    ):
        ticks: dict[float, str] = {}
        for i, (name, of_encoder) in enumerate(shots.items()):
            for probe, style in ((LINEAR, "o-"), (PROTOTYPE, "s--")):
                curve = [shot for shot in of_encoder if shot.probe == probe and shot.amount.endswith(ending)]
                means = 100 * np.array([shot.weighted_f1.mean for shot in curve])
                sds = 100 * np.array([shot.weighted_f1.sd for shot in curve])
                cells = [shot.cells for shot in curve]
                axes.plot(cells, means, style, color=colour(i), markersize=3.5, linewidth=1.4, label=f"{name}, {probe}")
                axes.fill_between(cells, means - sds, means + sds, color=colour(i), alpha=0.10, linewidth=0)
                ticks |= {shot.cells: f"{shot.amount.removesuffix('-shot')}\n({shot.cells:.0f})" for shot in curve}
        axes.set_xscale("log")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.minorticks_off()
        axes.set_xlabel(f"{title} (number of cells)")
        plain(axes)
    panels[0].set_ylabel("weighted F1, %")
    panels[1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def confusion(score: Score, classes: tuple[CellClass, ...], title: str) -> Figure:
    """Counts over all runs, shaded by the share of the true class (rows)."""
    return confusion_counts(score.confusion, classes, title)


def confusion_counts(counts: NDArray[np.int64], classes: tuple[CellClass, ...], title: str) -> Figure:
    """Counts (C, C), shaded by the share of the true class (rows)."""
    figure = Figure(figsize=(3.5, 3.6), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            ink = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=ink)
    names = [c.short for c in classes]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("predicted", color=SOFT, fontsize=9)
    axes.set_ylabel("true", color=SOFT, fontsize=9)
    axes.set_title(title, fontsize=10, color=INK)
    axes.tick_params(length=0, colors=SOFT)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def plain(axes: Axes) -> None:
    """The look of all figures with two axes."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.tick_params(colors=SOFT, length=0)
    axes.yaxis.set_tick_params(labelcolor=INK)
    axes.xaxis.label.set_color(SOFT)
    axes.yaxis.label.set_color(SOFT)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
