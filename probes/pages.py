"""The probe report as one self-contained page: tables, and every figure, which W&B gets too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from papsmear import __version__
from papsmear.files import write_text
from papsmear.page import figure_uri, picture_uri, render
from papsmear.probes import foldspread, plots, published
from papsmear.probes.datasets import CellSet
from papsmear.probes.differences import Difference, differences
from papsmear.probes.fewshot import Shot
from papsmear.probes.neighbour_sheets import draw_sheet, find_sheet, thumbnail
from papsmear.probes.projection import POINTS, class_map
from papsmear.probes.protocol import Score
from papsmear.probes.report import Results, best_encoder
from papsmear.probes.results import Protocol, Result
from papsmear.probes.scores import Spread
from papsmear.probes.splits import TEST_SHARE
from papsmear.probes.transfer_tables import page_targets
from papsmear.progress import track

_THUMBNAIL_PX = 112


def figures(results: Results) -> dict[str, Figure]:
    """Every figure, by `<set>/<figure>`, `<set>/confusion/<encoder>`, `<set>/neighbours/<encoder>`, `map/<encoder>`."""
    drawn = {}
    for name, scores in results.scores.items():
        drawn[f"{name}/weighted_f1"] = plots.weighted_f1_bars(scores)
        drawn[f"{name}/f1_by_k"] = plots.f1_by_k(scores)
        if results.few_shot:
            drawn[f"{name}/few_shot"] = plots.few_shot_curves(results.few_shot[name])
        for encoder, score in scores.items():
            title = f"{encoder}, k = {score.k}"
            drawn[f"{name}/confusion/{encoder}"] = plots.confusion(score, results.sets[name].classes, title)
    everything = results.sets | results.targets
    for encoder, features in track(list(results.features.items()), "drawing"):
        for name, cells in results.sets.items():
            drawn[f"{name}/neighbours/{encoder}"] = draw_sheet(
                find_sheet(features[name], cells, results.seed), cells, encoder
            )
        drawn[f"map/{encoder}"] = class_map(features, everything, encoder, results.seed)
    return drawn


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure's pixels (H, W, 3): for sheets of cells, whose PNG in an SVG would be five times as large as a JPEG."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def write_page(path: Path, results: Results, drawn: Mapping[str, Figure]) -> None:
    """Writes the page; pictures and style are inside it."""
    sections = []
    for name, scores in results.scores.items():
        cells = results.sets[name]
        classes = [
            {"class": c, "images": n, "picture": picture_uri(thumbnail(_typical(cells, i), 2 * _THUMBNAIL_PX))}
            for i, (c, n) in enumerate(zip(cells.classes, cells.counts(), strict=True))
        ]
        sections.append({
            "cells": cells, "classes": classes, "encoders": list(scores),
            "rows": table_rows(scores), "best": best_encoder(scores),
            "ks": [score.k for score in scores.values()],
            "published": _published_columns(name), "duplicates": results.duplicates.get(name),
            "leaks": results.leaks.get(name),
            **_protocol_values(results.protocols[name]), "differences": _pairs(results.protocols[name]),
            "few_shot": figure_uri(drawn[f"{name}/few_shot"]),
            "few_shot_splits": _few_shot_splits(results.few_shot[name]),
            "bars": figure_uri(drawn[f"{name}/weighted_f1"]),
            "by_k": figure_uri(drawn[f"{name}/f1_by_k"]),
            "confusions": [figure_uri(drawn[f"{name}/confusion/{encoder}"]) for encoder in scores],
            "sheets": {
                encoder: picture_uri(pixels(drawn[f"{name}/neighbours/{encoder}"])) for encoder in results.features
            },
            "folds": foldspread.of_set(results.protocols[name], results.folds),
        })  # fmt: skip
    page = render(
        "probes/report.html",
        transfer_targets=page_targets(results.transfer, results.targets),
        transfer_folds=foldspread.transfer_fold_rows(results.transfer, results.folds),
        maps={encoder: figure_uri(drawn[f"map/{encoder}"]) for encoder in results.features}, points=POINTS,
        sections=sections, results=results, source=published.SOURCE, version=__version__,
        test_percent=round(100 * TEST_SHARE), colours=[plots.colour(i) for i in range(len(results.cards))],
    )  # fmt: skip
    write_text(path, page)


def table_rows(scores: Mapping[str, Score]) -> list[tuple[str, list[Spread | None]]]:
    """The score table of one set: (class, side or `weighted F1`) and its figure for each encoder."""
    rows: dict[str, list[Spread | None]] = {}
    every = list(scores.values())
    for name in every[0].class_f1:
        rows[name] = [score.class_f1.get(name) for score in every]
    for side in every[0].side_f1:
        rows[side] = [score.side_f1.get(side) for score in every]
    rows["weighted F1"] = [score.weighted_f1 for score in every]
    return list(rows.items())


def _protocol_values(results: dict[str, dict[Protocol, Result]]) -> dict[str, Any]:
    """What the page shows of every protocol; compared are the published protocol and the honest ones."""
    order = list(next(iter(results.values())))
    return {
        "results": results,
        "order": order,
        "by_class": sorted((p for p in order if not p.as_published), key=lambda p: not p.honest),
        "grouped": any(p.honest for p in order),
        "compared": [p for p in order if p.as_published or p.honest],
        "published_intervals": [r.intervals for of in results.values() for p, r in of.items() if p.as_published],
    }


def _pairs(results: dict[str, dict[Protocol, Result]]) -> dict[tuple[str, str], list[Difference]]:
    """The differences of each two encoders, in the order of the protocols."""
    pairs: dict[tuple[str, str], list[Difference]] = {}
    for found in differences(results):
        pairs.setdefault((found.first, found.second), []).append(found)
    return pairs


def _few_shot_splits(shots: dict[str, list[Shot]]) -> str:
    return next(iter(shots.values()))[0].splits


def _published_columns(name: str) -> dict[str, dict[str, str]]:
    """Published encoder → row of the table → figure as printed."""
    columns = {}
    for encoder, (mean, sd) in published.WEIGHTED_F1.get(name, {}).items():
        by_class = {row: f"{value:.1f}" for row, value in published.CLASS_F1[name][encoder].items()}
        columns[encoder] = {**by_class, "weighted F1": f"{mean:.1f} ± {sd:.1f}"}
    return columns


def _typical(cells: CellSet, label: int) -> NDArray[np.uint8]:
    """The class's image of median size, so that the page shows neither a speck nor a giant."""
    members = [cells.images[i] for i in np.flatnonzero(cells.labels == label)]
    return sorted(members, key=lambda image: image.shape[0] * image.shape[1])[len(members) // 2]
