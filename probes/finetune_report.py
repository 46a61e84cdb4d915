"""The report of a fine-tuning run: `finetune.json`, one self-contained page, and the W&B run, from the same results."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from papsmear import __version__
from papsmear.files import write_text
from papsmear.page import figure_uri, picture_uri, render
from papsmear.probes import deeppap, plots
from papsmear.probes.datasets import CellSet
from papsmear.probes.deeppap import PROTOCOL, DeepPap, Task
from papsmear.probes.nuclei import Nucleus, without_scale
from papsmear.probes.patches import views_to_train
from papsmear.probes.results import GROUPED, UNGROUPED
from papsmear.probes.screening import Binary, OfClasses
from papsmear.probes.tables import spread_facts
from papsmear.ssl.card import EncoderCard

if TYPE_CHECKING:
    import wandb

TITLES = {UNGROUPED: "folds over cells", GROUPED: "folds by source picture"}
_SHEET_PX, _SHEET_VIEWS = 96, 9


@dataclass(frozen=True)
class Outcome:
    """What one cross-validation gave, by task; `losses`: the mean loss of each epoch, of each fold."""

    binary: Binary | None
    classes: OfClasses | None
    losses: dict[Task, list[tuple[float, ...]]]


@dataclass(frozen=True)
class Tuned:
    """What a run found, by kind of folds, and what it was found on and with."""

    card: EncoderCard
    cells: CellSet
    nuclei: tuple[Nucleus, ...]
    protocol: DeepPap
    seed: int
    outcomes: dict[str, Outcome]

    @property
    def without_scale(self) -> bool:
        return without_scale(self.cells)


def results_json(results: Tuned) -> str:
    """The results as JSON; figures are shares of 1, each with `mean`, `sd` and `runs`, a run being a fold.

    `departures`: numbers of the protocol that are not the published ones, as [here, published]. `folds[kind]`:
    `as_published` or `honest`; `binary` with `figures`, `correct` (a row for each class: cells on their right side) and
    `accuracy_by_px` of displacement; `classes` with `error` and `confusion`, rows the true classes; `losses` of each
    task, fold and epoch. `published`: the paper's own figures, in percent.
    """
    document = {
        "papsmear": __version__,
        "protocol": asdict(results.protocol),
        "departures": results.protocol.departures(),
        "seed": results.seed,
        "encoder": asdict(results.card),
        "set": {
            "name": results.cells.name,
            "images": len(results.cells.labels),
            "without_scale": results.without_scale,
            "damaged": results.cells.damaged,
        },
        "folds": {splits: _facts(results, splits) for splits in results.outcomes},
        "published": {
            "source": deeppap.SOURCE,
            "figures": deeppap.PUBLISHED,
            "correct": deeppap.PUBLISHED_CORRECT,
            "class_error": deeppap.PUBLISHED_CLASS_ERROR,
            "accuracy_displaced_up_to_10_px": deeppap.PUBLISHED_DISPLACED_ACCURACY,
        },
    }
    return json.dumps(document, indent=1)


def _facts(results: Tuned, splits: str) -> dict[str, Any]:
    outcome = results.outcomes[splits]
    facts: dict[str, Any] = {"as_published": splits == UNGROUPED, "honest": splits == GROUPED}
    if outcome.binary:
        facts["binary"] = {
            "figures": {name: spread_facts(spread) for name, spread in outcome.binary.figures.items()},
            "correct": [
                {"class": c.short, "side": c.side, "correct": right, "cells": n}
                for c, right, n in _class_rows(results, outcome.binary)
            ],
            "accuracy_by_px": {px: spread_facts(spread) for px, spread in outcome.binary.accuracy_by_px.items()},
        }
    if outcome.classes:
        error, confusion = outcome.classes.error, outcome.classes.confusion
        facts["classes"] = {"error": spread_facts(error), "confusion": confusion.tolist()}
    return {**facts, "losses": outcome.losses}


def _class_rows(results: Tuned, found: Binary) -> list[tuple[Any, int, int]]:
    return list(zip(results.cells.classes, found.correct.tolist(), results.cells.counts(), strict=True))


def write_page(path: Path, results: Tuned) -> None:
    """Writes the page; pictures and style are inside it."""
    of_binary = {splits: outcome.binary for splits, outcome in results.outcomes.items() if outcome.binary}
    of_classes = {splits: outcome.classes for splits, outcome in results.outcomes.items() if outcome.classes}
    confusions = {
        splits: figure_uri(plots.confusion_counts(found.confusion, results.cells.classes, TITLES[splits]))
        for splits, found in of_classes.items()
    }
    page = render(
        "probes/finetune.html",
        results=results, titles=TITLES, binary=of_binary, classes=of_classes,
        correct={splits: _class_rows(results, found) for splits, found in of_binary.items()},
        sheet=picture_uri(patch_sheet(results)), curve=figure_uri(displacement_curve(results)) if of_binary else None,
        confusions=confusions, published=deeppap, departures=results.protocol.departures(), version=__version__,
    )  # fmt: skip
    write_text(path, page)


def patch_sheet(results: Tuned) -> NDArray[np.uint8]:
    """Patches as the networks see them: a row for the class's middle cell, first upright, then augmented."""
    rows = []
    abnormal = np.array([c.side == "positive" for c in results.cells.classes])[results.cells.labels]
    for label in range(len(results.cells.classes)):
        members = np.flatnonzero(results.cells.labels == label)
        cell = int(members[len(members) // 2])
        views = views_to_train(np.array([cell]), abnormal, PROTOCOL, results.seed, "sheet")
        plain = views.upright()
        cut = [(plain, 0)] + [(views, row) for row in range(_SHEET_VIEWS - 1)]
        image, nucleus = results.cells.images[cell], results.nuclei[cell]
        patches = [of.cut(row, image, nucleus, _SHEET_PX) for of, row in cut]
        rows.append(np.concatenate([np.pad(p, ((0, 4), (0, 4), (0, 0)), constant_values=255) for p in patches], axis=1))
    return np.concatenate(rows)


def displacement_curve(results: Tuned) -> Figure:
    """Accuracy against the displacement of the nucleus centre: mean over the folds, and sd."""
    figure = Figure(figsize=(5.6, 3.0), layout="constrained")
    axes = figure.subplots()
    for i, (splits, outcome) in enumerate(results.outcomes.items()):
        assert outcome.binary is not None
        by_px = outcome.binary.accuracy_by_px
        means = 100 * np.array([spread.mean for spread in by_px.values()])
        sds = 100 * np.array([spread.sd for spread in by_px.values()])
        axes.plot(list(by_px), means, "o-", color=plots.colour(i), markersize=3, linewidth=1.5, label=TITLES[splits])
        low, high = np.clip([means - sds, means + sds], 0, 100)
        axes.fill_between(list(by_px), low, high, color=plots.colour(i), alpha=0.12, linewidth=0)
    axes.set_xlabel("displacement of the nucleus centre, px of 128")
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize=8, frameon=False)
    plots.plain(axes)
    return figure


def log_to_wandb(run: "wandb.Run", results: Tuned, page: Path) -> None:
    """Figures, the curve, the patches and the page (as an artifact) into a W&B run."""
    import wandb

    figures: list[tuple[str, str, float, float]] = []
    curve, correct = [], []
    for splits, outcome in results.outcomes.items():
        if outcome.binary:
            figures += [(splits, name, s.mean, s.sd) for name, s in outcome.binary.figures.items()]
            curve += [[splits, px, s.mean, s.sd] for px, s in outcome.binary.accuracy_by_px.items()]
            correct += [[splits, c.short, right, n] for c, right, n in _class_rows(results, outcome.binary)]
        if outcome.classes:
            figures.append((splits, "class error", outcome.classes.error.mean, outcome.classes.error.sd))
    for splits, name, mean, _ in figures:
        run.summary[f"{splits}/{name}"] = mean
    run.log({
        "figures": wandb.Table(["folds", "figure", "mean", "sd"], [*map(list, figures)]),
        "accuracy_by_px": wandb.Table(["folds", "px", "mean", "sd"], curve),
        "correct": wandb.Table(["folds", "class", "correct", "cells"], correct),
        "patches": wandb.Image(patch_sheet(results)),
    })  # fmt: skip
    artifact = wandb.Artifact(f"finetune-report-{run.id}", type="report")
    artifact.add_file(str(page))
    run.log_artifact(artifact)


def print_table(results: Tuned) -> None:
    """The figures of both kinds of folds beside the published ones, on standard output."""
    table = Table("%", title="Fine-tuned, mean ± sd over the folds", title_justify="left")
    for splits in results.outcomes:
        table.add_column(TITLES[splits], justify="right")
    table.add_column("published", justify="right", style="dim")
    spreads: dict[str, list[str]] = {}
    for outcome in results.outcomes.values():
        found = dict(outcome.binary.figures) if outcome.binary else {}
        found |= {"class error": outcome.classes.error} if outcome.classes else {}
        for name, spread in found.items():
            spreads.setdefault(name, []).append(f"{100 * spread.mean:.1f} ± {100 * spread.sd:.1f}")
    theirs: dict[str, float] = {
        **deeppap.PUBLISHED,
        "AUC": 100 * deeppap.PUBLISHED["AUC"],
        "class error": deeppap.PUBLISHED_CLASS_ERROR,
    }
    for name, measured in spreads.items():
        table.add_row(name, *measured, f"{theirs[name]:.1f}")
    Console().print(table)
