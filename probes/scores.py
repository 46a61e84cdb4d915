"""F1 scores: of each class, of positives and negatives, and weighted, over the runs of a protocol.

Weighted F1 is the mean of the class F1 weighted by the number of test cells of the class. Positives and negatives are
scored from the same predictions: classes are mapped to their side, cells of a class that is on neither side are left
out, and a prediction of such a class for another cell counts as a miss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from papsmear.probes.classes import CellClass
from papsmear.probes.knn import Ints

WEIGHTED = "weighted F1"


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


def weighted_f1(truth: Ints, predicted: Ints) -> float:
    """Weighted F1 of predictions (Q,), as scikit-learn's `f1_score` has it, in a tenth of its time."""
    n_classes = int(max(truth.max(), predicted.max())) + 1
    confusion = np.bincount(truth * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)
    support = confusion.sum(axis=1)  # (C,)
    either = support + confusion.sum(axis=0)
    met = either > 0
    return float(np.average(2 * np.diag(confusion)[met] / either[met], weights=support[met]))


def class_f1(truths: Sequence[Ints], predicted: Sequence[Ints], classes: Sequence[CellClass]) -> dict[str, Spread]:
    """F1 of each class over the runs, by its short name."""
    scores = np.array([
        f1_score(t, p, labels=range(len(classes)), average=None, zero_division=0)
        for t, p in zip(truths, predicted, strict=True)
    ])  # (R, C)  # fmt: skip
    return {c.short: Spread(tuple(scores[:, i].tolist())) for i, c in enumerate(classes)}


def side_f1(truths: Sequence[Ints], predicted: Sequence[Ints], classes: Sequence[CellClass]) -> dict[str, Spread]:
    """F1 of `positives` and of `negatives` over the runs, each where cells of that side are tested in every run."""
    runs = [_side_f1(t, p, classes) for t, p in zip(truths, predicted, strict=True)]
    return {side: Spread(tuple(run[side] for run in runs)) for side in runs[0] if all(side in run for run in runs)}


def _side_f1(truth: Ints, predicted: Ints, classes: Sequence[CellClass]) -> dict[str, float]:
    side_of = np.array([c.side for c in classes])
    counted = side_of[truth] != "neither"
    true_sides, predicted_sides = side_of[truth[counted]], side_of[predicted[counted]]
    scores = {}
    for side in ("positive", "negative"):
        if side in true_sides:
            scores[f"{side}s"] = float(f1_score(true_sides == side, predicted_sides == side, zero_division=0))
    return scores


def f1_of_confusion(confusion: NDArray[np.float64], classes: Sequence[CellClass]) -> dict[str, NDArray[np.float64]]:
    """The same scores of confusion matrices (..., C, C), rows the true classes: score name → (...).

    A score without cells and predictions is 0. This is for many weighted matrices at once, as the bootstrap has them.
    """
    support, per_class = confusion.sum(axis=-1), _f1_of(confusion)  # (..., C)
    total = support.sum(axis=-1)
    scores = {WEIGHTED: (per_class * support).sum(axis=-1) / np.maximum(total, np.finfo(float).tiny)}
    scores |= {c.short: per_class[..., i] for i, c in enumerate(classes)}
    sides = ("positive", "negative", "neither")
    onto = np.array([[c.side == side for side in sides] for c in classes], dtype=float)  # (C, 3)
    by_side = onto.T @ confusion @ onto  # (..., 3, 3)
    by_side[..., 2, :] = 0
    both = _f1_of(by_side)
    scores |= {f"{side}s": both[..., i] for i, side in enumerate(sides[:2])}
    return scores


def _f1_of(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """2 TP / (true + predicted) of each class (..., C)."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    either = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    scores: NDArray[np.float64] = 2 * hits / np.maximum(either, np.finfo(float).tiny)
    return scores
