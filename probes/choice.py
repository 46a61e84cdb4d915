"""k chosen without the test part: by cross-validation inside the training part."""

from collections.abc import Sequence

import numpy as np

from papsmear.probes.knn import EXP, PLAIN, Ints, Neighbourhoods, votes_by_k
from papsmear.probes.scores import weighted_f1
from papsmear.probes.splits import Part


def choose_k(
    cells: Neighbourhoods, labels: Ints, folds: Sequence[Part], ks: Sequence[int], n_classes: int
) -> dict[str, int]:
    """For each kind of votes the k with the best weighted F1 of the predictions of all folds of the cells.

    The smallest of equally good ones. A k that is more than the cells of a fold's fitting part is not tried; where none
    is left, or there are no folds, it is the smallest of `ks`. `folds` are indices into `cells` and `labels` (N,).
    """
    tried = sorted({k for k in ks if all(k <= len(fit) for fit, _ in folds)})
    if not folds or not tried:
        return dict.fromkeys((PLAIN, EXP), min(ks))
    truth = np.concatenate([labels[check] for _, check in folds])
    parts = [cells.among(fit, check, max(tried)) for fit, check in folds]
    near, similarities = (np.concatenate(of_parts) for of_parts in zip(*parts, strict=True))  # (Q, K)
    found = votes_by_k(labels[near], similarities, tried, n_classes)
    best = {}
    for kind in (PLAIN, EXP):
        scores = {k: weighted_f1(truth, found[kind][k]) for k in tried}
        best[kind] = max(scores, key=lambda k: scores[k])
    return best
