"""Few-shot curves: how the probes do with few labelled cells.

Of each training part a share of every class is kept, at least one cell, or n cells of every class; larger drawings
hold the smaller ones. Linear probe (C chosen inside what was kept, where that is possible) and prototype are fitted on
it and tested on the whole test part.
"""

from dataclasses import dataclass

import numpy as np

from papsmear.probes.datasets import CellSet
from papsmear.probes.knn import Floats, Ints
from papsmear.probes.linear import linear_probe
from papsmear.probes.prototype import predict_prototype
from papsmear.probes.results import GROUPED, LINEAR, PROTOTYPE, UNGROUPED
from papsmear.probes.scores import Spread, weighted_f1
from papsmear.probes.splits import grouped_splits, inner_folds, random_splits, source_pictures
from papsmear.seeds import derive, rng

SHARES = (0.01, 0.02, 0.05, 0.10, 0.25)
SHOTS = (1, 5, 10, 20)


@dataclass(frozen=True)
class Shot:
    """Weighted F1 over the runs with a share, or with n cells of each class (`n-shot`), of the training cells.

    `amount` is "5 %" or "5-shot"; `cells` is how many training cells that is, the mean over the runs.
    """

    splits: str
    probe: str
    amount: str
    cells: float
    weighted_f1: Spread


def few_shot(features: Floats, cells: CellSet, runs: int, seed: int) -> list[Shot]:
    """The curves on features (N, D) of the set's N cells; on grouped splits where there are such, else ungrouped."""
    labels, pictures = cells.labels, source_pictures(cells)
    grouped = grouped_splits(labels, pictures, runs, seed)
    parts = grouped or random_splits(labels, runs, seed)
    sizes: dict[str, list[int]] = {}
    scores: dict[tuple[str, str], list[float]] = {}
    for run, (train, test) in enumerate(parts):
        for amount, kept in drawings(labels[train], derive(seed, "few-shot", run)).items():
            chosen = train[kept]
            x, y = features[chosen], labels[chosen]
            groups = pictures[chosen] if grouped and pictures is not None else None
            folds = inner_folds(y, groups, derive(seed, "few-shot inside", run))
            sizes.setdefault(amount, []).append(len(chosen))
            for probe, found in (
                (LINEAR, linear_probe(x, y, features[test], folds)[1]),
                (PROTOTYPE, predict_prototype(x, y, features[test])),
            ):
                scores.setdefault((probe, amount), []).append(weighted_f1(labels[test], found))
    splits = GROUPED if grouped else UNGROUPED
    return [
        Shot(splits, probe, amount, float(np.mean(sizes[amount])), Spread(tuple(of_runs)))
        for (probe, amount), of_runs in scores.items()
        if len(of_runs) == len(parts)
    ]


def drawings(labels: Ints, seed: int) -> dict[str, Ints]:
    """Indices into a training part's labels (N,) for each amount; n-shot only where every class has n cells."""
    place = np.empty(len(labels), dtype=np.int64)  # each cell's place in the drawing order of its class
    order = rng(seed).permutation(len(labels))
    present, counts = np.unique(labels, return_counts=True)
    for label, count in zip(present, counts, strict=True):
        place[order[labels[order] == label]] = np.arange(count)
    size_of = np.zeros(int(present.max()) + 1, dtype=np.int64)
    size_of[present] = counts
    found = {}
    for share in SHARES:
        wanted = np.maximum(1, np.round(share * size_of).astype(np.int64))
        found[f"{100 * share:g} %"] = np.flatnonzero(place < wanted[labels])
    for shots in SHOTS:
        if shots <= counts.min():
            found[f"{shots}-shot"] = np.flatnonzero(place < shots)
    return found
