"""Bootstrap intervals of the scores, and of differences between encoders.

Resampled, with replacement, are the source pictures where they are known, with all their cells, else single cells:
cells of one picture are not independent (the cluster bootstrap; Davison & Hinkley 1997, section 3.8). A resample is
one multiplicity for each cell of the set, used in every run and for every encoder; this makes a difference of two
encoders a paired one. The trained probes stay as they are, so an interval says what other test cells would have given,
not other training cells. Intervals are percentiles (Efron & Tibshirani 1993, chapter 13).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from papsmear.probes.classes import CellClass
from papsmear.probes.knn import Ints
from papsmear.probes.scores import f1_of_confusion
from papsmear.seeds import rng

RESAMPLES = 1000

Interval = tuple[float, float]


def resamples(groups: Ints, seed: int, count: int = RESAMPLES) -> NDArray[np.float64]:
    """How often each cell is drawn (B, N), when as many groups are drawn as `groups` (N,) names, counted from 0."""
    n_groups = int(groups.max()) + 1
    drawn = rng(seed, "bootstrap").multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=count)  # (B, G)
    return drawn[:, groups].astype(np.float64)


def replicates(
    truths: Sequence[Ints],
    predicted: Sequence[Ints],
    tests: Sequence[Ints],
    multiplicities: NDArray[np.float64],
    classes: Sequence[CellClass],
) -> dict[str, NDArray[np.float64]]:
    """Each score's mean over the runs in every resample: name → (B,).

    `truths`, `predicted`, `tests` have for each run the true and found labels and the indices of its test cells. A
    resample without test cells of a class says nothing of its F1: the mean is over the runs that have some, NaN where
    none has.
    """
    n = len(classes)
    runs = []
    for truth, found, test in zip(truths, predicted, tests, strict=True):
        cells = np.eye(n * n)[truth * n + found]  # (Q, C * C): one-hot in the confusion matrix
        confusion = (multiplicities[:, test] @ cells).reshape(-1, n, n)  # (B, C, C)
        tested = _tested(confusion.sum(axis=-1), classes)
        scores = f1_of_confusion(confusion, classes)
        runs.append({name: np.where(tested.get(name, True), score, np.nan) for name, score in scores.items()})
    return {name: _mean_of_known(np.stack([run[name] for run in runs])) for name in runs[0]}


def _tested(support: NDArray[np.float64], classes: Sequence[CellClass]) -> dict[str, NDArray[np.bool_]]:
    """In which resamples (B,) a class, or a side, has any of the test cells, `support` (B, C) of each class."""
    tested = {c.short: support[:, i] > 0 for i, c in enumerate(classes)}
    for side in ("positive", "negative"):
        of_side = [i for i, c in enumerate(classes) if c.side == side]
        tested[f"{side}s"] = support[:, of_side].sum(axis=-1) > 0
    return tested


def _mean_of_known(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the runs (R, B) → (B,) of what is no NaN."""
    known = ~np.isnan(scores)
    total = np.where(known, scores, 0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def interval(values: NDArray[np.float64]) -> Interval:
    """The 95 % percentile interval of replicates (B,), without those that are NaN."""
    low, high = np.percentile(values[~np.isnan(values)], [2.5, 97.5])
    return float(low), float(high)
