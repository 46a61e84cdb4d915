"""The study's k-NN protocol: random 75/25 splits, four runs, class-wise and weighted F1, k as published.

Source: Stegmüller et al., arXiv 2302.05195. k is the one with the best weighted F1 on the test part, here the mean
over the runs; this flatters every encoder. `papsmear.probes.results` has what does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from papsmear.errors import UsageError
from papsmear.probes.datasets import CellSet
from papsmear.probes.knn import Floats, Neighbourhoods, votes
from papsmear.probes.scores import Spread, class_f1, side_f1, weighted_f1
from papsmear.probes.splits import grouped_splits, random_splits, smallest_training_part, source_pictures


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


def check_ks(ks: Sequence[int], cells: CellSet, seed: int, runs: int = 1) -> None:
    """UsageError where a k is larger than a training part of a set."""
    parts = random_splits(cells.labels, runs, seed) + grouped_splits(cells.labels, source_pictures(cells), runs, seed)
    n_train = smallest_training_part(parts)
    if max(ks) > n_train:
        raise UsageError(
            f"--ks: k = {max(ks)} is more than the {n_train} training cells of {cells.title} "
            f"({len(cells.labels)} in all); leave out the larger k"
        )


def knn_probe(
    features: Floats, cells: CellSet, ks: Sequence[int], runs: int, seed: int, near: Neighbourhoods | None = None
) -> Score:
    """The protocol on features (N, D) of the set's N cells; `near`: their neighbourhoods, where they are found."""
    near = near or Neighbourhoods.of(features, max(ks))
    truths, found = [], []
    for train, test in random_splits(cells.labels, runs, seed):
        truths.append(cells.labels[test])
        found.append(cells.labels[near.among(train, test, max(ks))[0]])  # (Q, k) labels
    n_classes = len(cells.classes)
    predicted = {k: [votes(labels[:, :k], n_classes) for labels in found] for k in sorted(set(ks))}
    by_k = {
        k: Spread(tuple(weighted_f1(t, p) for t, p in zip(truths, predictions, strict=True)))
        for k, predictions in predicted.items()
    }
    best = max(by_k, key=lambda k: by_k[k].mean)  # the smallest of equally good ones
    return Score(
        k=best,
        weighted_f1=by_k[best],
        class_f1=class_f1(truths, predicted[best], cells.classes),
        side_f1=side_f1(truths, predicted[best], cells.classes),
        by_k=by_k,
        confusion=sum(
            confusion_matrix(t, p, labels=range(n_classes)) for t, p in zip(truths, predicted[best], strict=True)
        ),
    )
