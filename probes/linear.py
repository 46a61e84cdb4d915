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
from papsmear.probes.softmax import TIGHT, Scales, fit_softmax, scales_of
from papsmear.probes.splits import Part

CS = (1e-3, 1e-2, 1e-1, 1.0)
LOOSE = 3 * TIGHT  # for the fits that only choose C


def linear_probe(train: Floats, labels: Ints, queries: Floats, folds: Sequence[Part]) -> tuple[float, Ints]:
    """C, chosen in `folds` of `train` (N, D), and the labels (Q,) that the fit gives to `queries` (Q, D)."""
    x, q = coordinates(train, queries)
    scales = scales_of(x)
    c = choose_c(x, labels, folds, scales=scales)
    return c, predict_linear(x, labels, q, c, scales)


def coordinates(train: Floats, queries: Floats) -> tuple[Floats, Floats]:
    """Standardised features in an orthonormal basis of the training rows' span: (N, R) and (Q, R), R ≤ min(N, D)."""
    mean, sd = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    scale = np.where(sd > 0, sd, 1)
    x, q = (train - mean) / scale, (queries - mean) / scale
    if len(x) < x.shape[1]:
        basis = np.linalg.qr(x.T)[0]  # (D, N)
        x, q = x @ basis, q @ basis
    return x.astype(np.float32), q.astype(np.float32)


def predict_linear(train: Floats, labels: Ints, queries: Floats, c: float, scales: Scales | None = None) -> Ints:
    """Labels (Q,) that logistic regression on `train` (N, R) gives to `queries` (Q, R)."""
    return _predict_path(train, labels, queries, [c], TIGHT, scales or scales_of(train))[c]


def choose_c(
    train: Floats, labels: Ints, folds: Sequence[Part], cs: Sequence[float] = CS, scales: Scales | None = None
) -> float:
    """The C with the best weighted F1 of the predictions of all folds; the smallest of equally good ones.

    Where there are no folds, since there are too few cells, the middle one.
    """
    if not folds:
        return cs[len(cs) // 2]
    scales = scales or scales_of(train)
    truth = np.concatenate([labels[check] for _, check in folds])
    paths = [_predict_path(train[fit], labels[fit], train[check], cs, LOOSE, scales) for fit, check in folds]
    scores = {c: weighted_f1(truth, np.concatenate([found[c] for found in paths])) for c in cs}
    return max(scores, key=lambda c: scores[c])


def _predict_path(
    train: Floats, labels: Ints, queries: Floats, cs: Sequence[float], tolerance: float, scales: Scales
) -> dict[float, Ints]:
    """Labels (Q,) for each of `cs`, ascending: each fit starts from the one before it. One class needs no fit."""
    present, places = np.unique(labels, return_inverse=True)
    if len(present) == 1:
        return dict.fromkeys(cs, np.full(len(queries), labels[0]))
    found, start = {}, None
    for c in cs:
        start = fit_softmax(train, places, c, scales, tolerance, start)
        found[c] = present[(queries @ start[:-1] + start[-1]).argmax(axis=1)]
    return found
