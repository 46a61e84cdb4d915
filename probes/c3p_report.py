"""The C3P report: one self-contained page, `c3p.json` and the W&B run, from the same results."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from papsmear import __version__
from papsmear.files import write_text
from papsmear.page import figure_uri, picture_uri, render
from papsmear.probes import plots, published
from papsmear.probes.ablation import NO_PASTING, PROBABILITIES, VARIANTS, Fold, Outcome, Variant
from papsmear.probes.binary import F1
from papsmear.probes.datasets import CellSet
from papsmear.probes.labelled import LabelledCell, by_side
from papsmear.probes.pasting import METHODS
from papsmear.probes.tables import spread_facts
from papsmear.ssl.card import EncoderCard

if TYPE_CHECKING:
    import wandb


@dataclass(frozen=True)
class Ablation:
    """What the figures were made of, and then, by encoder: its card and outcomes, why it failed, whether it leaks.

    `masked`: the sets whose cells were pasted within their masks; `scaled_by_class`: those that had lost their scale.
    `damaged`: why a tile could not be read, by its name.
    """

    sets: tuple[CellSet, ...]
    cells: tuple[LabelledCell, ...]
    masked: tuple[str, ...]
    scaled_by_class: tuple[str, ...]
    folds: tuple[Fold, ...]
    damaged: dict[str, str]
    seed: int
    cards: dict[str, EncoderCard] = field(default_factory=dict)
    outcomes: dict[str, dict[Variant, Outcome]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    leaking: list[str] = field(default_factory=list)


def c3p_json(ablation: Ablation) -> str:
    """The results as JSON; figures are shares of 1.

    `cells`: the sets and how many cells of each side can be pasted. `folds`: for each tested fold the canvases and the
    tiles, and their slides. `encoders[name]`: its card. `outcomes`: a row for each encoder and variant with `method`
    (null: no pasting), `probability`, `c` of the folds, `scores` (each with `mean`, `sd`, `runs` over the folds and
    `interval_95`) and `gain` of F1 above no pasting (`mean`, `interval_95`). `leaking`: encoders that were trained on
    tested slides. `published` (secondary): what is reported of the study.
    """
    document = {
        "papsmear": __version__,
        "seed": ablation.seed,
        "cells": {
            "sets": {cells.name: {"images": len(cells.labels), "damaged": cells.damaged} for cells in ablation.sets},
            "masked": ablation.masked,
            "scaled_by_class": ablation.scaled_by_class,
            **{side: len(by_side(ablation.cells, label)) for label, side in ((1, "positive"), (0, "negative"))},
        },
        "folds": [fold_facts(fold) for fold in ablation.folds],
        "damaged_tiles": ablation.damaged,
        "encoders": {name: asdict(card) for name, card in ablation.cards.items()},
        "failed": ablation.failed,
        "leaking": ablation.leaking,
        "outcomes": [
            {"encoder": name, "method": variant.method, "probability": variant.probability, **_facts(outcome)}
            for name, outcomes in ablation.outcomes.items()
            for variant, outcome in outcomes.items()
        ],
        "published": {
            "source": published.C3P_SOURCE,
            "f1_of_positives": {str(method): figure for method, figure in published.C3P.items()},
            "probability": published.C3P_PROBABILITY,
        },
    }
    return json.dumps(document, indent=1)


def fold_facts(fold: Fold) -> dict[str, Any]:
    """How many canvases and tiles a fold has of each label, and of which slides."""
    return {
        "fold": fold.number,
        **{
            what: {
                "positive": int(tiles.labels.sum()),
                "negative": int((tiles.labels == 0).sum()),
                "slides": sorted(set(tiles.slide_ids)),
            }
            for what, tiles in (("canvases", fold.canvases), ("tiles", fold.tested))
        },
    }


def _facts(outcome: Outcome) -> dict[str, Any]:
    return {
        "c": list(outcome.picks),
        "scores": {name: spread_facts(s, outcome.intervals[name]) for name, s in outcome.scores.items()},
        "gain": outcome.gain and {"mean": outcome.gain[0], "interval_95": list(outcome.gain[1])},
    }


def f1_by_probability(found: Mapping[Variant, Outcome]) -> Figure:
    """One encoder's F1 of positives against the paste probability, a line a method; no pasting is the level line."""
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(100 * found[NO_PASTING].scores[F1].mean, color=plots.SOFT, linestyle="--", label="no pasting")
    for i, method in enumerate(METHODS):
        outcomes = [found[Variant(method, p)] for p in PROBABILITIES]
        means = 100 * np.array([outcome.scores[F1].mean for outcome in outcomes])
        ends = 100 * np.array([outcome.intervals[F1] for outcome in outcomes])  # (P, 2)
        away = np.maximum(np.abs(ends - means[:, None]).T, 0)
        x = np.array(PROBABILITIES) + 0.02 * (i - 1)
        axes.errorbar(x, means, away, fmt="o-", color=plots.colour(i), markersize=4, capsize=3, label=method)
    axes.set_xticks(PROBABILITIES)
    axes.set_xlabel("how often a canvas of a negative slide gets a cell")
    axes.set_ylabel("F1 of positives, %")
    axes.set_ylim(0, 103)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def write_c3p_page(path: Path, ablation: Ablation, picture: NDArray[np.uint8], drawn: Mapping[str, Figure]) -> None:
    """Writes the page; pictures and style are inside it."""
    page = render(
        "probes/c3p.html",
        ablation=ablation, variants=VARIANTS, scores=list(next(iter(ablation.outcomes.values()))[NO_PASTING].scores),
        folds=[fold_facts(fold) for fold in ablation.folds], published=published,
        n_cells={label: len(by_side(ablation.cells, label)) for label in (0, 1)},
        sheet=picture_uri(picture, 92), figures={name: figure_uri(figure) for name, figure in drawn.items()},
        version=__version__,
    )  # fmt: skip
    write_text(path, page)


def log_c3p(
    run: "wandb.Run", ablation: Ablation, picture: NDArray[np.uint8], drawn: Mapping[str, Figure], page: Path
) -> None:
    """Table, plots, the sheet, summary figures and the page (as an artifact) into a W&B run."""
    import wandb

    columns, rows = _rows(ablation)
    for encoder, outcomes in ablation.outcomes.items():
        for variant, outcome in outcomes.items():
            run.summary[f"{encoder}/{variant.title}/f1_of_positives"] = outcome.scores[F1].mean
    run.log({
        "c3p": wandb.Table(columns=[*columns], data=rows),
        "pasted tiles": wandb.Image(Image.fromarray(picture)),
        **{f"f1_by_probability/{name}": wandb.Image(_pixels(figure)) for name, figure in drawn.items()},
    })  # fmt: skip
    artifact = wandb.Artifact(f"c3p-report-{run.id}", type="report")
    artifact.add_file(str(page))
    run.log_artifact(artifact)


def _rows(ablation: Ablation) -> tuple[list[str], list[list[Any]]]:
    """A plain table: encoder, method, probability, then mean, sd, low and high of each score."""
    columns = ["encoder", "method", "probability"]
    rows: list[list[Any]] = []
    for encoder, outcomes in ablation.outcomes.items():
        for variant, outcome in outcomes.items():
            row: list[Any] = [encoder, variant.method or "no pasting", variant.probability]
            for name, spread in outcome.scores.items():
                row += [spread.mean, spread.sd, *outcome.intervals[name]]
            rows.append(row)
    names: Sequence[str] = list(next(iter(ablation.outcomes.values()))[NO_PASTING].scores)
    return columns + [f"{name}, {part}" for name in names for part in ("mean", "sd", "low", "high")], rows


def _pixels(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer)
