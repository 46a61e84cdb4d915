"""The probe report: one self-contained page and `results.json`, from the same results."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from papsmear import __version__
from papsmear.files import write_text
from papsmear.page import figure_uri, picture_uri, render
from papsmear.probes import plots, published
from papsmear.probes.datasets import CellSet
from papsmear.probes.differences import Difference, differences
from papsmear.probes.fewshot import Shot
from papsmear.probes.protocol import Score
from papsmear.probes.results import Protocol, Result
from papsmear.probes.scale import Resize
from papsmear.probes.scores import Spread
from papsmear.probes.splits import TEST_SHARE
from papsmear.probes.tables import difference_rows, few_shot_rows, protocol_rows, spread_facts
from papsmear.probes.transfer import Transferred
from papsmear.probes.transfer_tables import page_targets, published_transfer, transfer_rows
from papsmear.ssl.card import EncoderCard

_THUMBNAIL_PX = 112


@dataclass(frozen=True)
class Results:
    """What a probe run found, by set and encoder, and what it was found on and with.

    `scores`: the published protocol. `failed`: why an encoder gave no result, by its name. `protocols`: every protocol,
    the published one among them. `few_shot`: the curves. `duplicates`: of each set. `transfer`: to the sets `targets`.
    `leaks`: the encoders that were trained on slides of a set, by its name. `resize`: how images are
    brought to the encoders' input.
    """

    sets: dict[str, CellSet]
    cards: dict[str, EncoderCard]
    scores: dict[str, dict[str, Score]]
    failed: dict[str, str]
    runs: int
    seed: int
    protocols: dict[str, dict[str, dict[Protocol, Result]]]
    few_shot: dict[str, dict[str, list[Shot]]]
    duplicates: dict[str, dict[str, Any]] = field(default_factory=dict)
    targets: dict[str, CellSet] = field(default_factory=dict)
    transfer: list[Transferred] = field(default_factory=list)
    leaks: dict[str, list[str]] = field(default_factory=dict)
    resize: Resize = "whole"


def results_json(results: Results) -> str:
    """The results as JSON; figures are shares of 1.

    `sets[set]`: `images`, `classes` (name, short, side, images), `damaged` (file → reason), `duplicates`. `leaks`: the
    encoders that were trained on slides of a set. `encoders[name]`: its card.
    `scores`, the published protocol: a row for each set and encoder with `k`, `weighted_f1`, `class_f1`, `side_f1` and
    `weighted_f1_by_k`, each figure as `mean`, `sd` and `runs`, and `confusion`, the counts over all runs with a row for
    each true class. `protocols`: a row for each set, encoder and protocol, with `interval_95` in each figure, and
    `as_published` or `honest` where it is that. `differences`: paired, a row for each two encoders and protocol.
    `few_shot`: the curves. `targets[set]`, as `sets`, and `transfer`: a row for each encoder, fitting set and target,
    each metric with its `value` and `interval_95`. `published`: the study's own figures, in percent.
    """
    document = {
        "papsmear": __version__,
        "protocol": {
            "test_share": TEST_SHARE,
            "runs": results.runs,
            "seed": results.seed,
            "k": "best on the test part",
            "resize": results.resize,
        },
        "sets": {
            name: {**_set_facts(cells), "duplicates": results.duplicates.get(name)}
            for name, cells in results.sets.items()
        },
        "targets": {name: _set_facts(cells) for name, cells in results.targets.items()},
        "encoders": {name: asdict(card) for name, card in results.cards.items()},
        "failed": results.failed,
        "leaks": results.leaks,
        "scores": [
            {"set": set_name, "encoder": encoder, **_score_facts(score)}
            for set_name, scores in results.scores.items()
            for encoder, score in scores.items()
        ],
        "protocols": protocol_rows(results.protocols),
        "differences": difference_rows(results.protocols),
        "few_shot": few_shot_rows(results.few_shot),
        "transfer": transfer_rows(results.transfer),
        "published": {
            "source": published.SOURCE,
            "weighted_f1": {name: published.WEIGHTED_F1.get(name, {}) for name in results.sets},
            "class_f1": {name: published.CLASS_F1.get(name, {}) for name in results.sets},
            "transfer_sensitivity": published_transfer(results.targets),
        },
    }
    return json.dumps(document, indent=1)


def _set_facts(cells: CellSet) -> dict[str, Any]:
    classes = [
        {"name": c.name, "short": c.short, "side": c.side, "images": n}
        for c, n in zip(cells.classes, cells.counts(), strict=True)
    ]
    return {"images": len(cells.labels), "classes": classes, "damaged": cells.damaged}


def _score_facts(score: Score) -> dict[str, Any]:
    return {
        "k": score.k,
        "weighted_f1": spread_facts(score.weighted_f1),
        "class_f1": {name: spread_facts(spread) for name, spread in score.class_f1.items()},
        "side_f1": {name: spread_facts(spread) for name, spread in score.side_f1.items()},
        "weighted_f1_by_k": {str(k): spread_facts(spread) for k, spread in score.by_k.items()},
        "confusion": score.confusion.tolist(),
    }


def figures(results: Results) -> dict[str, Figure]:
    """Every figure, by `<set>/<figure>` or `<set>/confusion/<encoder>`."""
    drawn = {}
    for name, scores in results.scores.items():
        drawn[f"{name}/weighted_f1"] = plots.weighted_f1_bars(scores)
        drawn[f"{name}/f1_by_k"] = plots.f1_by_k(scores)
        if results.few_shot:
            drawn[f"{name}/few_shot"] = plots.few_shot_curves(results.few_shot[name])
        for encoder, score in scores.items():
            title = f"{encoder}, k = {score.k}"
            drawn[f"{name}/confusion/{encoder}"] = plots.confusion(score, results.sets[name].classes, title)
    return drawn


def write_page(path: Path, results: Results, drawn: Mapping[str, Figure]) -> None:
    """Writes the page; pictures and style are inside it."""
    sections = []
    for name, scores in results.scores.items():
        cells = results.sets[name]
        classes = [
            {"class": c, "images": n, "picture": picture_uri(_thumbnail(_typical(cells, i)))}
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
        })  # fmt: skip
    page = render(
        "probes/report.html",
        transfer_targets=page_targets(results.transfer, results.targets),
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


def best_encoder(scores: Mapping[str, Score]) -> str:
    """The encoder with the highest mean weighted F1."""
    return max(scores, key=lambda encoder: scores[encoder].weighted_f1.mean)


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


def _thumbnail(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The whole image, fitted into a white square."""
    height, width = rgb.shape[:2]
    scale = 2 * _THUMBNAIL_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    square = np.full((2 * _THUMBNAIL_PX, 2 * _THUMBNAIL_PX, 3), 255, np.uint8)
    top, left = (square.shape[0] - size[1]) // 2, (square.shape[1] - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = small
    return square
