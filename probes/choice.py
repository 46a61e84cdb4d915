"""k chosen without the test part: by cross-validation inside the training part."""

from collections.abc import Sequence

import numpy as np

from papsmear.probes.knn import EXP, PLAIN, Floats, Ints, predict_knn
from papsmear.probes.scores import weighted_f1
from papsmear.probes.splits import Part


def choose_k(train: Floats, labels: Ints, folds: Sequence[Part], ks: Sequence[int], n_classes: int) -> dict[str, int]:
    """For each kind of votes the k with the best weighted F1 of the predictions of all folds of `train` (N, D).

    The smallest of equally good ones. A k that is more than the cells of a fold's fitting part is not tried; where none
    is left, or there are no folds, it is the smallest of `ks`.
    """
    tried = sorted({k for k in ks if all(k <= len(fit) for fit, _ in folds)})
    if not folds or not tried:
        return dict.fromkeys((PLAIN, EXP), min(ks))
    truth = np.concatenate([labels[check] for _, check in folds])
    found = [predict_knn(train[fit], labels[fit], train[check], tried, n_classes) for fit, check in folds]
    best = {}
    for kind in (PLAIN, EXP):
        scores = {k: weighted_f1(truth, np.concatenate([by_kind[kind][k] for by_kind in found])) for k in tried}
        best[kind] = max(scores, key=lambda k: scores[k])
    return best
