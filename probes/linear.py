"""The linear probe: logistic regression on frozen features, its regularisation chosen inside the training part.

Features are standardised by the training part's mean and sd. C, the inverse of the L2 penalty's weight, is the one
with the best weighted F1 in cross-validation inside the training part. The solution lies in the span of the training
rows (representer theorem), so both are taken in coordinates of that span: the same fit with N columns in place of D.
The fits themselves are in softmax.py.
"""

from collections.abc import Sequence

import numpy as np

from papsmear.probes.knn import Floats, Ints
from papsmear.probes.scores import weighted_f1
from papsmear.probes.softmax import fit_softmax, scales_of
from papsmear.probes.splits import Part

CS = (1e-3, 1e-2, 1e-1, 1.0)


def linear_probe(
    train: Floats, labels: Ints, queries: Floats, folds: Sequence[Part], cs: Sequence[float] = CS
) -> tuple[float, Ints]:
    """C, chosen in `folds` of `train` (N, D), and the labels (Q,) that the fit gives to `queries` (Q, D)."""
    x, q = coordinates(train, queries)
    every = np.arange(len(x))
    present, weights = _fit(x, labels, [*(fit for fit, _ in folds), every], cs)
    best = _best(x, labels, folds, present, weights)
    return cs[best], _predict(q, present, weights[best, -1])


def coordinates(train: Floats, queries: Floats) -> tuple[Floats, Floats]:
    """Standardised features in an orthonormal basis of the training rows' span: (N, R) and (Q, R), R ≤ min(N, D)."""
    mean = train.mean(axis=0, dtype=np.float64).astype(np.float32)
    x, q = train - mean, queries - mean
    sd = np.sqrt(np.square(x).mean(axis=0, dtype=np.float64)).astype(np.float32)
    scale = np.where(sd > 0, sd, np.float32(1))
    x /= scale
    q /= scale
    if len(x) < x.shape[1]:
        basis, r = np.linalg.qr(x.T)  # (D, N), (N, N)
        x, q = r.T, q @ basis
    return x, q


def choose_c(train: Floats, labels: Ints, folds: Sequence[Part], cs: Sequence[float] = CS) -> float:
    """The C with the best weighted F1 of the predictions of all folds of `train` (N, R), whose columns have mean 0.

    The smallest of equally good ones. Where there are no folds, since there are too few cells, the middle one.
    """
    if not folds:
        return cs[len(cs) // 2]
    present, weights = _fit(train, labels, [fit for fit, _ in folds], cs)
    return cs[_best(train, labels, folds, present, weights)]


def _fit(x: Floats, labels: Ints, parts: Sequence[Ints], cs: Sequence[float]) -> tuple[Ints, Floats]:
    """The classes (K,) in the labels, and weights (C, F, R + 1, K) of a fit for each C and each part of the rows."""
    present, places = np.unique(labels, return_inverse=True)
    fitted = np.zeros((len(parts), len(x)), bool)
    for rows, part in zip(fitted, parts, strict=True):
        rows[part] = True
    return present, fit_softmax(x, places, fitted, cs, scales_of(x))


def _best(x: Floats, labels: Ints, folds: Sequence[Part], present: Ints, weights: Floats) -> int:
    """The place of the best C by its fits to the folds."""
    if not folds:
        return len(weights) // 2
    truth = np.concatenate([labels[check] for _, check in folds])
    scores = []
    for of_c in weights:
        found = [_predict(x[check], present, w) for (_, check), w in zip(folds, of_c[: len(folds)], strict=True)]
        scores.append(weighted_f1(truth, np.concatenate(found)))
    return int(np.argmax(scores))


def _predict(queries: Floats, present: Ints, weights: Floats) -> Ints:
    """Labels (Q,) of queries (Q, R) by weights (R + 1, K) of the classes (K,)."""
    found: Ints = present[(queries @ weights[:-1] + weights[-1]).argmax(axis=1)]
    return found
