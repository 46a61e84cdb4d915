"""Multinomial logistic regression with an L2 penalty, by L-BFGS in scaled directions.

Minimised is scikit-learn's objective: the mean of -log p(label) plus |W|² / (2 C N), the bias free; for two classes the
penalty is doubled, which is its logistic regression of one weight vector. Features of networks vary a hundred times
more along some directions than along others, and L-BFGS wants many steps for that. So it works on V with W = S V, where
S is the inverse root of the Hessian's estimate along the leading principal directions (a preconditioner: Nocedal &
Wright 2006, section 5.1). The minimum stays the same, the steps are a fraction, and float32 is enough.

Shapes: N rows, D columns, K classes, R leading directions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.utils.extmath import randomized_svd

from papsmear.probes.knn import Floats, Ints

TIGHT = 1e-4  # of the scaled gradient, half whose square is about what the loss is above its minimum
_LEADING = 64
_CURVATURE = 0.1  # of the loss in a logit: p (1 - p), somewhat below its value at the start


@dataclass(frozen=True)
class Scales:
    """The leading principal directions (D, R) of training rows, the variance (R,) along each, and along the others."""

    directions: Floats
    variances: Floats
    rest: float


def scales_of(x: Floats) -> Scales:
    """The scales of rows (N, D) whose columns have mean 0."""
    x = np.asarray(x, np.float32)
    n, d = x.shape
    count = min(_LEADING, n, d)
    _, roots, directions = randomized_svd(x, count, n_iter=2, random_state=0)
    variances = roots**2 / n
    rest = (float(np.einsum("nd,nd->", x, x)) / n - float(variances.sum())) / max(d - count, 1)
    return Scales(np.ascontiguousarray(directions.T), variances.astype(np.float32), max(rest, 0.0))


def fit_softmax(
    x: Floats, places: Ints, c: float, scales: Scales, tolerance: float = TIGHT, start: Floats | None = None
) -> Floats:
    """Weights and, in the last row, bias (D + 1, K) for rows (N, D) with labels (N,) 0 … K - 1; from `start` on."""
    x = np.asarray(x, np.float32)
    n, n_classes = len(x), int(places.max()) + 1
    truth = np.eye(n_classes, dtype=np.float32)[places]  # (N, K)
    ridge = (1 if n_classes > 2 else 2) / (c * n)
    along = (_CURVATURE * scales.variances + ridge) ** -0.5  # (R,)
    others = np.float32((_CURVATURE * scales.rest + ridge) ** -0.5)

    def spread(v: Floats, back: bool = False) -> Floats:
        """S V, or with `back` its inverse; the bias is not scaled."""
        inside, outside = (1 / along, 1 / others) if back else (along, others)
        leading = scales.directions @ ((inside - outside)[:, None] * (scales.directions.T @ v[:-1]))
        return np.concatenate([outside * v[:-1] + leading, v[-1:]])

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = spread(flat.astype(np.float32).reshape(-1, n_classes))  # (D + 1, K)
        logits = x @ w[:-1] + w[-1]  # (N, K)
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits)
        sums = shares.sum(axis=1, keepdims=True)
        value = (np.log(sums).sum(dtype=np.float64) - (logits * truth).sum(dtype=np.float64)) / n
        value += ridge / 2 * np.square(w[:-1]).sum(dtype=np.float64)
        residuals = (shares / sums - truth) / np.float32(n)
        slopes = (residuals.T @ x).T + np.float32(ridge) * w[:-1]  # (D, K); x.T @ residuals takes a third longer
        gradient = np.concatenate([slopes, residuals.sum(axis=0, keepdims=True)])
        return float(value), spread(gradient).astype(np.float64).ravel()

    first = np.zeros((x.shape[1] + 1, n_classes), np.float32) if start is None else spread(start, back=True)
    options = {"gtol": tolerance, "ftol": 1e-10, "maxiter": 1000}
    found = minimize(loss, first.astype(np.float64).ravel(), jac=True, method="L-BFGS-B", options=options)
    return spread(found.x.astype(np.float32).reshape(-1, n_classes))
