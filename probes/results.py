"""Every protocol on one encoder's features of one set: the published way of choosing and splitting, and honest ones.

A protocol is a probe (k-NN with plain or weighted votes, linear, prototype), splits (ungrouped as published, or grouped
by source picture), and where k or C is chosen: on the test part, as published, or by cross-validation inside the
training part, whose folds are grouped where the splits are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from papsmear.probes.bootstrap import Interval, interval, replicates, resamples
from papsmear.probes.choice import choose_k
from papsmear.probes.datasets import CellSet
from papsmear.probes.knn import EXP, PLAIN, Floats, Ints, Neighbourhoods, votes_by_k
from papsmear.probes.linear import linear_probe
from papsmear.probes.prototype import predict_prototype
from papsmear.probes.scores import WEIGHTED, Spread, class_f1, side_f1, weighted_f1
from papsmear.probes.splits import Part, grouped_splits, inner_folds, random_splits, source_pictures
from papsmear.seeds import derive

UNGROUPED, GROUPED = "ungrouped", "grouped"
ON_TEST, INSIDE, NOTHING = "on the test part", "inside the training part", "nothing to choose"
LINEAR, PROTOTYPE = "linear", "prototype"


@dataclass(frozen=True)
class Protocol:
    """How a figure was made; `splits`, `probe` and `chosen` are this module's names of them."""

    splits: str
    probe: str
    chosen: str

    @property
    def honest(self) -> bool:
        """Neither chosen on the test part nor with a picture's cells on both sides."""
        return self.splits == GROUPED and self.chosen != ON_TEST

    @property
    def as_published(self) -> bool:
        """The study's own protocol."""
        return (self.splits, self.probe, self.chosen) == (UNGROUPED, f"k-NN, {PLAIN}", ON_TEST)


HONEST_KNN = Protocol(GROUPED, f"k-NN, {PLAIN}", INSIDE)


@dataclass(frozen=True)
class Result:
    """What a protocol gave for one encoder on one set.

    `picks`: the k or C of each run, empty where nothing is chosen. `intervals`: bootstrap 95 % of each score's mean
    over the runs, by `weighted F1`, class or side. `resampled` (B,): weighted F1 in each bootstrap resample.
    """

    picks: tuple[float, ...]
    weighted_f1: Spread
    class_f1: dict[str, Spread]
    side_f1: dict[str, Spread]
    intervals: dict[str, Interval]
    resampled: NDArray[np.float64]


@dataclass(frozen=True)
class _Predictions:
    picks: tuple[float, ...]
    of_run: list[Ints]


def measure(
    features: Floats, cells: CellSet, ks: Sequence[int], runs: int, seed: int, near: Neighbourhoods | None = None
) -> dict[Protocol, Result]:
    """All protocols on features (N, D) of the set's N cells; grouped ones where the source pictures allow it.

    `near`: the cells' neighbourhoods, where they are found.
    """
    near = near or Neighbourhoods.of(features, max(ks))
    pictures = source_pictures(cells)
    multiplicities = resamples(np.arange(len(cells.labels)) if pictures is None else pictures, seed)  # (B, N)
    results = {}
    for splits, parts, groups in (
        (UNGROUPED, random_splits(cells.labels, runs, seed), None),
        (GROUPED, grouped_splits(cells.labels, pictures, runs, seed), pictures),
    ):
        if not parts:
            continue
        truths, tests = [cells.labels[test] for _, test in parts], [test for _, test in parts]
        found = predict(near, cells.labels, parts, groups, ks, seed)
        for (probe, chosen), predictions in found.items():
            predicted = predictions.of_run
            sides = side_f1(truths, predicted, cells.classes)
            drawn = replicates(truths, predicted, tests, multiplicities, cells.classes)
            kept = (WEIGHTED, *(c.short for c in cells.classes), *sides)
            results[Protocol(splits, probe, chosen)] = Result(
                picks=predictions.picks,
                weighted_f1=Spread(tuple(weighted_f1(t, p) for t, p in zip(truths, predicted, strict=True))),
                class_f1=class_f1(truths, predicted, cells.classes),
                side_f1=sides,
                intervals={name: interval(drawn[name]) for name in kept},
                resampled=drawn[WEIGHTED],
            )
    return results


def predict(
    cells: Neighbourhoods, labels: Ints, parts: Sequence[Part], pictures: Ints | None, ks: Sequence[int], seed: int
) -> dict[tuple[str, str], _Predictions]:
    """What each probe says of every part's test cells: (probe, where chosen) → picks, and labels (Q,) for each run.

    `cells` are those of the set, with their features (N, D), and `labels` (N,) theirs.
    `pictures` (N,): the source pictures, to group the folds inside the training parts by; None leaves them ungrouped.
    """
    n_classes, ks = int(labels.max()) + 1, sorted(set(ks))
    by_k: list[dict[str, dict[int, Ints]]] = []
    inside: list[dict[str, int]] = []
    cs, linear, prototype = [], [], []
    for run, (train, test) in enumerate(parts):
        x, y, queries = cells.features[train], labels[train], cells.features[test]
        folds = inner_folds(y, None if pictures is None else pictures[train], derive(seed, "inside", run))
        near, similarities = cells.among(train, test, max(ks))
        by_k.append(votes_by_k(labels[near], similarities, ks, n_classes))
        inside.append(choose_k(cells, labels, [(train[fit], train[check]) for fit, check in folds], ks, n_classes))
        c, by_linear = linear_probe(x, y, queries, folds)
        cs.append(c)
        linear.append(by_linear)
        prototype.append(predict_prototype(x, y, queries))
    truths = [labels[test] for _, test in parts]
    found: dict[tuple[str, str], _Predictions] = {}
    for kind in (PLAIN, EXP):
        best = _best_on_test([of_run[kind] for of_run in by_k], truths)
        found[f"k-NN, {kind}", ON_TEST] = _Predictions((best,) * len(parts), [of_run[kind][best] for of_run in by_k])
    for kind in (PLAIN, EXP):
        picks = tuple(pick[kind] for pick in inside)
        of_run = [of_kind[kind][k] for of_kind, k in zip(by_k, picks, strict=True)]
        found[f"k-NN, {kind}", INSIDE] = _Predictions(picks, of_run)
    found[LINEAR, INSIDE] = _Predictions(tuple(cs), linear)
    found[PROTOTYPE, NOTHING] = _Predictions((), prototype)
    return found


def _best_on_test(by_k: Sequence[dict[int, Ints]], truths: Sequence[Ints]) -> int:
    """The k with the best mean weighted F1 on the test parts, the smallest of equally good ones."""

    def mean(k: int) -> float:
        return float(np.mean([weighted_f1(t, of_run[k]) for t, of_run in zip(truths, by_k, strict=True)]))

    return max(by_k[0], key=mean)
