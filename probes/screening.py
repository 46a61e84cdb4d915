"""The figures of DeepPap: normal against abnormal, each class, all classes, and against displacement.

From the scores of all folds of a cross-validation; a figure is the mean over the folds, as published. H-mean is the
harmonic mean of sensitivity and specificity, F that of sensitivity and precision, abnormal being the positive side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_auc_score

from papsmear.probes.knn import Ints
from papsmear.probes.patches import Floats64
from papsmear.probes.scores import Spread


@dataclass(frozen=True)
class FoldScores:
    """What one fold's network says of its test cells: `scores` (Q, C), and those at each displacement, px.

    `loss`: the mean training loss of each epoch.
    """

    test: Ints
    scores: Floats64
    displaced: dict[int, Floats64]
    loss: tuple[float, ...]


@dataclass(frozen=True)
class Binary:
    """Normal against abnormal. `figures`: by name. `correct` (classes,): cells on their right side, over all folds.

    `accuracy_by_px`: accuracy where the nucleus centre is displaced by so many patch px; 0 is among them.
    """

    figures: dict[str, Spread]
    correct: Ints
    accuracy_by_px: dict[int, Spread]


@dataclass(frozen=True)
class OfClasses:
    """All classes: the share of cells in a wrong one, and `confusion` (C, C) over all folds, rows the true classes."""

    error: Spread
    confusion: NDArray[np.int64]


def screening_figures(abnormal: NDArray[np.bool_], score: Floats64) -> dict[str, float]:
    """The binary figures of cells (Q,) whose score (Q,) says how abnormal they are; over 0.5 they are called so.

    Both sides must be among the cells. Without a hit H-mean and F are 0.
    """
    called = score > 0.5
    hits, misses = int((called & abnormal).sum()), int((~called & abnormal).sum())
    alarms, passes = int((called & ~abnormal).sum()), int((~called & ~abnormal).sum())
    sensitivity, specificity = hits / (hits + misses), passes / (passes + alarms)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "accuracy": (hits + passes) / len(score),
        "H-mean": 2 * sensitivity * specificity / ((sensitivity + specificity) or 1),
        "F": 2 * hits / (2 * hits + misses + alarms),
        "AUC": float(roc_auc_score(abnormal, score)),
    }


def binary(folds: Sequence[FoldScores], abnormal: NDArray[np.bool_], labels: Ints) -> Binary:
    """The binary figures of cells that are `abnormal` (N,), of classes `labels` (N,)."""
    each = [screening_figures(abnormal[fold.test], fold.scores[:, 1]) for fold in folds]
    right = np.zeros(int(labels.max()) + 1, dtype=np.int64)
    for fold in folds:
        np.add.at(right, labels[fold.test], (fold.scores[:, 1] > 0.5) == abnormal[fold.test])
    by_px = {px: [fold.displaced[px] for fold in folds] for px in folds[0].displaced}
    displaced = {0: [fold.scores for fold in folds], **by_px}
    return Binary(
        {name: Spread(tuple(of_fold[name] for of_fold in each)) for name in each[0]},
        right,
        {px: _accuracy(folds, scores, abnormal.astype(np.int64)) for px, scores in displaced.items()},
    )


def of_classes(folds: Sequence[FoldScores], labels: Ints) -> OfClasses:
    """The figures over all classes, which `labels` (N,) counts."""
    accuracy = _accuracy(folds, [fold.scores for fold in folds], labels)
    names = range(int(labels.max()) + 1)
    counts = [confusion_matrix(labels[fold.test], fold.scores.argmax(axis=1), labels=names) for fold in folds]
    return OfClasses(Spread(tuple(1 - value for value in accuracy.runs)), np.sum(counts, axis=0))


def _accuracy(folds: Sequence[FoldScores], scores: Sequence[Floats64], truth: Ints) -> Spread:
    right = [np.mean(s.argmax(axis=1) == truth[fold.test]) for fold, s in zip(folds, scores, strict=True)]
    return Spread(tuple(map(float, right)))
