"""L-BFGS for many small problems side by side: one evaluation of all of them a step.

A probe fits the same rows again and again, for each fold and each C. Alone, such a fit waits for memory, or for Python;
together they are one matrix product. The method is that of Nocedal & Wright 2006, algorithms 7.4 and 7.5, with every
problem's own history, and steps halved until they satisfy the Armijo condition (3.4). It is meant for convex problems
that are scaled well, whose first step of 1 is about right.

Shapes: B problems, A of them still open, P parameters.
"""

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from papsmear.probes.knn import Floats, Ints

Doubles = NDArray[np.float64]
Loss = Callable[[Floats, Ints], tuple[Doubles, Floats]]

_HISTORY, _STEPS = 10, 1000
_DECREASE = 1e-4  # the share of the promised decrease that a step must bring
_ROUNDING = 1e-7  # of a loss in float32


def minimise(loss: Loss, start: Floats, tolerance: float) -> Floats:
    """The minima (B, P), each found once half its gradient's square is not above `tolerance`.

    That is about the loss above its minimum, where the scale is such that second derivatives are about 1.
    `loss(points, which)` gives the losses (A,) and gradients (A, P) of the problems `which` (A,) at `points` (A, P).
    """
    found = start.copy()
    which = np.arange(len(start))
    at, (value, slope) = start, loss(start, which)
    length = np.ones(len(start), np.float32)
    history: deque[tuple[Floats, Floats, Floats]] = deque(maxlen=_HISTORY)
    for _ in range(_STEPS):
        open_ = (_dot(slope, slope) > 2 * tolerance) & (length > 1e-6)
        if not open_.all():
            found[which] = at
            which, at, value, slope, length = which[open_], at[open_], value[open_], slope[open_], length[open_]
            history = deque(((s[open_], y[open_], rho[open_]) for s, y, rho in history), maxlen=_HISTORY)
            if not len(which):
                break
        direction = _direction(slope, history)  # (A, P)
        trial = at + length[:, None] * direction
        trial_value, trial_slope = loss(trial, which)
        promised = length * _dot(slope, direction)
        taken = trial_value <= value + _DECREASE * promised + _ROUNDING * np.abs(value)
        moved, turned = trial - at, trial_slope - slope
        curvature = _dot(moved, turned)
        rho = np.divide(1, curvature, out=np.zeros_like(curvature), where=curvature > 1e-30)
        history.append((moved, turned, rho))
        at, slope = np.where(taken[:, None], trial, at), np.where(taken[:, None], trial_slope, slope)
        value, length = np.where(taken, trial_value, value), np.where(taken, np.float32(1), length / 2)
    found[which] = at
    return found


def _direction(slope: Floats, history: deque[tuple[Floats, Floats, Floats]]) -> Floats:
    """Minus the inverse Hessian's estimate times the gradient (A, P): algorithm 7.4, with (7.20) as the first guess.

    `history`: of each step tried the move, the gradient's change, both (A, P), and 1 / their product (A,), 0 where the
    step tells nothing.
    """
    q = -slope
    shares = []
    scale = np.ones(len(slope), np.float32)
    for moved, turned, rho in reversed(history):
        share = rho * _dot(moved, q)
        q -= share[:, None] * turned
        shares.append(share)
    for _, turned, rho in history:
        scale = np.where(rho > 0, 1 / np.maximum(rho * _dot(turned, turned), 1e-30), scale)
    q *= scale[:, None]
    for (moved, turned, rho), share in zip(history, reversed(shares), strict=True):
        q += (share - rho * _dot(turned, q))[:, None] * moved
    return q


def _dot(a: Floats, b: Floats) -> Floats:
    products: Floats = np.einsum("ap,ap->a", a, b)
    return products
