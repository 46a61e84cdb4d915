"""The study's k-NN protocol: random 75/25 splits, four runs, class-wise and weighted F1, k as published.

Source: Stegmüller et al., arXiv 2302.05195. k is the one with the best weighted F1 on the test part, here the mean
over the runs; this flatters every encoder. Positives and negatives are scored from the same predictions: classes are
mapped to their side, cells of a class that is on neither side are left out, and a prediction of such a class for
another cell counts as a miss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score

from papsmear.errors import UsageError
from papsmear.probes.classes import CellClass
from papsmear.probes.datasets import CellSet
from papsmear.probes.knn import Floats, Ints, neighbours, votes
from papsmear.seeds import rng

TEST_SHARE = 0.25


@dataclass(frozen=True)
class Spread:
    """One score over the runs, as a share of 1."""

    runs: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.runs))

    @property
    def sd(self) -> float:
        """The sample standard deviation; 0 for a single run."""
        return float(np.std(self.runs, ddof=1)) if len(self.runs) > 1 else 0.0


@dataclass(frozen=True)
class Score:
    """What the k-NN probe gives for one encoder and one set, at the chosen k.

    `class_f1` goes by short class name, `side_f1` by `positives` and `negatives`; `by_k` is the weighted F1 at every k
    tried; `confusion` (C, C) counts test cells over all runs, rows are the true classes.
    """

    k: int
    weighted_f1: Spread
    class_f1: dict[str, Spread]
    side_f1: dict[str, Spread]
    by_k: dict[int, Spread]
    confusion: NDArray[np.int64]


def split(labels: Ints, seed: int, run: int) -> tuple[Ints, Ints]:
    """Indices of a training and a test part, stratified: a quarter of each class is tested, at least one cell.

    The same for every encoder, so that encoders are compared on the same cells. Each class needs two cells.
    """
    train, test = [], []
    generator = rng(seed, "split", run)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        n_test = max(1, round(TEST_SHARE * len(members)))
        test.append(members[:n_test])
        train.append(members[n_test:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def check_ks(ks: Sequence[int], cells: CellSet, seed: int) -> None:
    """UsageError where a k is larger than the training part of a set."""
    n_train = len(split(cells.labels, seed, 0)[0])
    if max(ks) > n_train:
        raise UsageError(
            f"--ks: k = {max(ks)} is more than the {n_train} training cells of {cells.title} "
            f"({len(cells.labels)} in all); leave out the larger k"
        )


def knn_probe(features: Floats, cells: CellSet, ks: Sequence[int], runs: int, seed: int) -> Score:
    """The protocol on features (N, D) of the set's N cells."""
    truths, found = [], []
    for run in range(runs):
        train, test = split(cells.labels, seed, run)
        truths.append(cells.labels[test])
        found.append(cells.labels[train][neighbours(features[train], features[test], max(ks))])  # (Q, k) labels
    n_classes = len(cells.classes)
    predicted = {k: [votes(labels[:, :k], n_classes) for labels in found] for k in sorted(set(ks))}
    by_k = {
        k: Spread(tuple(_f1(t, p, "weighted") for t, p in zip(truths, predictions, strict=True)))
        for k, predictions in predicted.items()
    }
    best = max(by_k, key=lambda k: by_k[k].mean)  # the smallest of equally good ones
    pairs = list(zip(truths, predicted[best], strict=True))
    per_class = np.array([f1_score(t, p, labels=range(n_classes), average=None, zero_division=0) for t, p in pairs])
    sides = [_side_f1(t, p, cells.classes) for t, p in pairs]
    return Score(
        k=best,
        weighted_f1=by_k[best],
        class_f1={c.short: Spread(tuple(per_class[:, i].tolist())) for i, c in enumerate(cells.classes)},
        side_f1={side: Spread(tuple(s[side] for s in sides)) for side in sides[0]},
        by_k=by_k,
        confusion=sum(confusion_matrix(t, p, labels=range(n_classes)) for t, p in pairs),
    )


def _f1(truth: Ints, predicted: Ints, average: str) -> float:
    return float(f1_score(truth, predicted, average=average, zero_division=0))


def _side_f1(truth: Ints, predicted: Ints, classes: Sequence[CellClass]) -> dict[str, float]:
    """F1 of positives and of negatives, each where cells of that side are tested."""
    side_of = np.array([c.side for c in classes])
    counted = side_of[truth] != "neither"
    true_sides, predicted_sides = side_of[truth[counted]], side_of[predicted[counted]]
    scores = {}
    for side in ("positive", "negative"):
        if side in true_sides:
            scores[f"{side}s"] = float(f1_score(true_sides == side, predicted_sides == side, zero_division=0))
    return scores
