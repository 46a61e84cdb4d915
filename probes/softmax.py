"""Multinomial logistic regression with an L2 penalty, for every C and fold at once, by L-BFGS in scaled directions.

Minimised is scikit-learn's objective: the mean of -log p(label) plus |W|² / (2 C N), the bias free; for two classes the
penalty is doubled, which is its logistic regression of one weight vector. Three things make it quick, and none of them
moves the minimum:

- All fits step together (lbfgs.py), so the rows are read once a step for all of them.
- Features of networks vary a hundred times more along some directions than along others, and L-BFGS wants many steps
  for that. So it works on V with W = S V, where S is the inverse root of the Hessian's estimate along the leading
  principal directions (a preconditioner: Nocedal & Wright 2006, section 5.1). It starts from the minimum inside the
  span of these directions, where a step costs a fraction.
- Weights that are the same for all classes change no probability, so those of K classes are K - 1 contrasts.

Shapes: N rows, D columns, K classes, R leading directions; C values of C, F choices of rows, B = C F fits, A of them
still open.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from papsmear.probes.knn import Floats, Ints
from papsmear.probes.lbfgs import Doubles, minimise

TOLERANCE = 3e-8  # about what the loss is above its minimum; with ten times as much C is sometimes chosen otherwise
_LEADING = 128
_CURVATURE = 0.1  # of the loss in a logit: p (1 - p), somewhat below its value at the start
_NEVER = np.float32(-1e30)  # the logit of a class that a fit does not know


@dataclass(frozen=True)
class Scales:
    """The leading principal directions (D, R) of training rows, the variance (R,) along each, and along the others."""

    directions: Floats
    variances: Floats
    rest: float


def scales_of(x: Floats) -> Scales:
    """The scales of rows (N, D) whose columns have mean 0."""
    n, d = x.shape
    count = min(_LEADING, n, d)
    _, roots, directions = randomized_svd(x, count, n_iter=1, random_state=0)
    variances = roots**2 / n
    rest = (float(np.einsum("nd,nd->", x, x)) / n - float(variances.sum())) / max(d - count, 1)
    return Scales(np.ascontiguousarray(directions.T), variances.astype(np.float32), max(rest, 0.0))


def fit_softmax(
    x: Floats,
    places: Ints,
    fitted: NDArray[np.bool_],
    cs: Sequence[float],
    scales: Scales,
    tolerance: float = TOLERANCE,
) -> Floats:
    """Weights and, in the last row, biases (C, F, D + 1, K) for rows (N, D) with labels (N,) 0 … K - 1.

    One fit for each of `cs` and each choice of rows, `fitted` (F, N). It never predicts a class that its rows lack.
    """
    x = np.asarray(x, np.float32)
    n_classes = int(places.max()) + 1
    fits = _Fits.of(places, np.tile(fitted, (len(cs), 1)), np.repeat(cs, len(fitted)))
    leading = scales.directions.shape[1]
    inside = Scales(np.eye(leading, dtype=np.float32), scales.variances, scales.rest)
    start = np.zeros((len(fits.ridges), n_classes - 1, leading + 1), np.float32)
    first = fits.minimum(x @ scales.directions, inside, start, tolerance)  # (B, K - 1, R + 1)
    start = np.concatenate([first[..., :-1] @ scales.directions.T, first[..., -1:]], axis=-1)
    found = fits.minimum(x, scales, start, tolerance)  # (B, K - 1, D + 1)
    return (found.transpose(0, 2, 1) @ _contrasts(n_classes)).reshape(len(cs), len(fitted), -1, n_classes)


def _contrasts(n_classes: int) -> Floats:
    """An orthonormal basis (K - 1, K) of what sums to 0 over the classes."""
    return np.linalg.svd(np.eye(n_classes) - 1 / n_classes)[2][:-1].astype(np.float32)


@dataclass(frozen=True)
class _Fits:
    """Fits to the same rows: labels (N,), a row's weight in each fit (B, N), classes left out (B, K), ridges (B,)."""

    places: Ints
    weights: Floats
    barred: Floats
    ridges: Floats

    @classmethod
    def of(cls, places: Ints, fitted: NDArray[np.bool_], cs: Doubles) -> "_Fits":
        n = fitted.sum(axis=1, keepdims=True)  # (B, 1)
        known = np.stack([fitted[:, places == k].any(axis=1) for k in range(places.max() + 1)], axis=1)  # (B, K)
        doubled = np.where(known.sum(axis=1) > 2, 1, 2)
        weights, barred = (fitted / n).astype(np.float32), np.where(known, np.float32(0), _NEVER)
        return cls(places, weights, barred, (doubled / (cs * n[:, 0])).astype(np.float32))

    def minimum(self, x: Floats, scales: Scales, start: Floats, tolerance: float) -> Floats:
        """The contrasts' weights and biases (B, K - 1, D + 1) at the minimum, from `start` on."""
        n, width = len(x), x.shape[1] + 1
        contrasts, rows = _contrasts(self.barred.shape[1]), np.arange(n)
        x = np.concatenate([x, np.ones((n, 1), np.float32)], axis=1)  # (N, D + 1)
        directions = np.concatenate([scales.directions, np.zeros_like(scales.directions[:1])])  # (D + 1, R)
        ridges = self.ridges[:, None, None]
        pulls, others = np.empty((2, len(ridges), 1, width), np.float32)
        pulls[:] = ridges
        others[:] = (_CURVATURE * scales.rest + ridges) ** -0.5
        along: Floats = (_CURVATURE * scales.variances + ridges) ** -0.5  # (B, 1, R)
        pulls[..., -1], others[..., -1] = 0, 1  # the bias is neither pulled nor scaled

        def scaled(v: Floats, inside: Floats, outside: Floats) -> Floats:
            """S V, from S along the leading directions and along the others."""
            leading = (v.reshape(-1, width) @ directions).reshape(*v.shape[:2], along.shape[2])
            leading *= inside - outside[..., :1]
            spread: Floats = outside * v + (leading.reshape(-1, along.shape[2]) @ directions.T).reshape(v.shape)
            return spread

        def loss(flat: Floats, which: Ints) -> tuple[Doubles, Floats]:
            s = along[which], others[which]
            w = scaled(flat.reshape(len(which), len(contrasts), width), *s)  # (A, K - 1, D + 1)
            logits = contrasts.T @ (w.reshape(-1, width) @ x.T).reshape(*w.shape[:2], n)  # (A, K, N)
            logits += self.barred[which][..., None]
            logits -= logits.max(axis=1, keepdims=True)
            own = logits[:, self.places, rows]  # (A, N)
            shares = np.exp(logits, out=logits)
            sums = shares.sum(axis=1)
            weights, pull = self.weights[which], pulls[which] * w
            value = ((np.log(sums) - own) * weights).sum(axis=1, dtype=np.float64)
            value += np.einsum("akd,akd->a", pull, w) / 2
            shares *= (weights / sums)[:, None]
            shares[:, self.places, rows] -= weights  # (A, K, N): the loss's slope in each logit
            slope = ((contrasts @ shares).reshape(-1, n) @ x).reshape(w.shape) + pull
            return value, scaled(slope, *s).reshape(len(which), -1)

        first = scaled(start, np.reciprocal(along), np.reciprocal(others)).reshape(len(start), -1)
        found = minimise(loss, first, tolerance).reshape(start.shape)
        return scaled(found, along, others)
