"""The linear probe: logistic regression on frozen features, its regularisation chosen inside the training part.

Features are standardised by the training part's mean and sd. C, the inverse of the L2 penalty's weight, is the one
with the best weighted F1 in cross-validation inside the training part. The solution lies in the span of the training
rows (representer theorem), so both are taken in coordinates of that span: the same fit with N columns in place of D.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from papsmear.probes.knn import Floats, Ints
from papsmear.probes.scores import weighted_f1
from papsmear.probes.splits import Part

CS = (1e-3, 1e-2, 1e-1, 1.0)
LOOSE = 1e-3  # of the gradient, for the fits that only choose C: it halves their time; the fit that counts has 1e-4

Doubles = NDArray[np.float64]


def linear_probe(train: Floats, labels: Ints, queries: Floats, folds: Sequence[Part]) -> tuple[float, Ints]:
    """C, chosen in `folds` of `train` (N, D), and the labels (Q,) that the fit gives to `queries` (Q, D)."""
    x, q = coordinates(train, queries)
    c = choose_c(x, labels, folds)
    return c, predict_linear(x, labels, q, c)


def coordinates(train: Floats, queries: Floats) -> tuple[Doubles, Doubles]:
    """Standardised features in an orthonormal basis of the training rows' span: (N, R) and (Q, R), R ≤ min(N, D)."""
    mean, sd = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    scale = np.where(sd > 0, sd, 1)
    x, q = (train - mean) / scale, (queries - mean) / scale
    if len(x) >= x.shape[1]:
        return x, q
    basis = np.linalg.qr(x.T)[0]  # (D, N)
    return x @ basis, q @ basis


def predict_linear(train: Doubles, labels: Ints, queries: Doubles, c: float) -> Ints:
    """Labels (Q,) that logistic regression on `train` (N, R) gives to `queries` (Q, R)."""
    return _predict_path(train, labels, queries, [c], 1e-4)[c]


def choose_c(train: Doubles, labels: Ints, folds: Sequence[Part], cs: Sequence[float] = CS) -> float:
    """The C with the best weighted F1 of the predictions of all folds; the smallest of equally good ones.

    Where there are no folds, since there are too few cells, the middle one.
    """
    if not folds:
        return cs[len(cs) // 2]
    truth = np.concatenate([labels[check] for _, check in folds])
    paths = [_predict_path(train[fit], labels[fit], train[check], cs, LOOSE) for fit, check in folds]
    scores = {c: weighted_f1(truth, np.concatenate([found[c] for found in paths])) for c in cs}
    return max(scores, key=lambda c: scores[c])


def _predict_path(
    train: Doubles, labels: Ints, queries: Doubles, cs: Sequence[float], tolerance: float
) -> dict[float, Ints]:
    """Labels (Q,) for each of `cs`, ascending: each fit starts from the one before it. One class needs no fit."""
    if len(np.unique(labels)) == 1:
        return dict.fromkeys(cs, np.full(len(queries), labels[0]))
    model = LogisticRegression(max_iter=2000, tol=tolerance, warm_start=True)
    found = {}
    for c in cs:
        model.set_params(C=c).fit(train, labels)
        found[c] = np.asarray(model.predict(queries), dtype=np.int64)
    return found
