"""L-BFGS side by side: its direction is that of the matrix formula, its minima are scipy's of each problem alone."""

from collections import deque

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from papsmear.probes.lbfgs import _direction, minimise

Floats = NDArray[np.float32]


def test_the_direction_is_that_of_the_matrix_formula() -> None:
    """H ← V' H V + rho s s' with V = I - rho y s', from s'y / y'y I on (Nocedal & Wright 2006, 7.16 to 7.20)."""
    generator = np.random.default_rng(0)
    history: deque[tuple[Floats, Floats, Floats]] = deque()
    for _ in range(4):
        moved = generator.normal(size=(3, 6)).astype(np.float32)
        turned = (moved * generator.uniform(0.5, 3, size=6)).astype(np.float32)
        history.append((moved, turned, 1 / (moved * turned).sum(axis=1)))
    history[-1][2][1] = 0  # the last step of the second problem tells nothing
    slope = generator.normal(size=(3, 6)).astype(np.float32)
    for b, direction in enumerate(_direction(slope, history)):
        pairs = [(s[b].astype(float), y[b].astype(float)) for s, y, rho in history if rho[b]]
        s, y = pairs[-1]
        h = np.eye(6) * (s @ y) / (y @ y)
        for s, y in pairs:
            v = np.eye(6) - np.outer(y, s) / (s @ y)
            h = v.T @ h @ v + np.outer(s, s) / (s @ y)
        np.testing.assert_allclose(direction, -h @ slope[b], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steepness", [1, 30])
def test_each_minimum_is_scipys_of_the_problem_alone(steepness: float) -> None:
    """Sums of log cosh and a square, easy ones and hard ones; steep ones where a step of 1 is far too long."""
    generator = np.random.default_rng(1)
    a = (steepness * generator.normal(size=(7, 12, 8)) * np.linspace(0.1, 1, 7)[:, None, None]).astype(np.float32)
    b = generator.normal(size=(7, 12)).astype(np.float32)

    def loss(points: Floats, which: NDArray[np.int64]) -> tuple[NDArray[np.float64], Floats]:
        inner = np.einsum("aij,aj->ai", a[which], points) - b[which]
        value = np.logaddexp(inner, -inner).mean(axis=1, dtype=float) + 0.05 * np.square(points).sum(axis=1)
        return value, np.einsum("aij,ai->aj", a[which], np.tanh(inner)) / 12 + np.float32(0.1) * points

    found = minimise(loss, np.zeros((7, 8), np.float32), tolerance=1e-10)
    for i, ours in enumerate(found):
        alone = minimize(lambda p, i=i: loss(p[None], np.array([i]))[0][0], np.zeros(8), tol=1e-10)
        np.testing.assert_allclose(ours, alone.x, atol=1e-3)
    np.testing.assert_array_equal(minimise(loss, found, tolerance=1e-6), found, "a good start is left as it is")
