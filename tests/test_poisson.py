"""The Poisson solver against a dense solve of the paper's equations."""

import numpy as np
import pytest
from numpy.typing import NDArray

from papsmear.probes.poisson import harmonic, harmonic_rectangle, poisson

RNG = np.random.default_rng(0)


def dense(cell: NDArray[np.float64], canvas: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Pérez, Gangnet & Blake 2003, equations 7 and 11, written out and solved with NumPy."""
    pixels = [tuple(p) for p in np.argwhere(inside)]
    number = {p: i for i, p in enumerate(pixels)}
    matrix, right = np.zeros((len(pixels),) * 2), np.zeros((len(pixels), cell.shape[2]))
    for (y, x), i in number.items():
        for q in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            matrix[i, i] += 1  # |N_p|
            right[i] += cell[y, x] - cell[q]  # v_pq
            if q in number:
                matrix[i, number[q]] -= 1  # f_q, q in Ω
            else:
                right[i] += canvas[q]  # f*_q, q on the boundary
    result = canvas.copy()
    if pixels:
        result[tuple(np.array(pixels).T)] = np.linalg.solve(matrix, right)
    return result


def without_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inside = mask.copy()
    inside[[0, -1]] = inside[:, [0, -1]] = False
    return inside


def disc(height: int, width: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    return ((y - height / 2) / height) ** 2 + ((x - width / 2) / width) ** 2 < 0.4**2


@pytest.mark.parametrize("shape", [(3, 3), (3, 12), (4, 4), (17, 25), (24, 9)])
def test_a_rectangle_is_the_dense_solution(shape: tuple[int, int]) -> None:
    cell, canvas = 255 * RNG.random((2, *shape, 3))
    expected = dense(cell, canvas, without_border(np.ones(shape, bool)))
    np.testing.assert_allclose(poisson(cell, canvas), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "mask",
    [
        disc(24, 17),
        RNG.random((20, 21)) < 0.5,  # many islands and holes, some pixels alone
        np.ones((12, 15), bool),
        np.eye(9, dtype=bool),
        np.zeros((9, 8), bool),
        np.ones((2, 8), bool),
    ],
)
def test_any_mask_is_the_dense_solution(mask: NDArray[np.bool_]) -> None:
    cell, canvas = 255 * RNG.random((2, *mask.shape, 3))
    expected = dense(cell, canvas, without_border(mask))
    np.testing.assert_allclose(poisson(cell, canvas, mask), expected, rtol=0, atol=1e-6)


def test_both_solvers_agree_at_the_size_of_a_cell() -> None:
    values = RNG.normal(size=(90, 120, 3))
    found = harmonic(values, without_border(np.ones((90, 120), bool))).reshape(88, 118, 3)
    np.testing.assert_allclose(harmonic_rectangle(values), found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("mask", [None, disc(20, 30)])
def test_what_follows_from_the_equations(mask: NDArray[np.bool_] | None) -> None:
    """The canvas pasted on itself stays; a colour added to the cell changes nothing; outside Ω the canvas stays."""
    cell, canvas = 255 * RNG.random((2, 20, 30, 3))
    np.testing.assert_allclose(poisson(canvas, canvas, mask), canvas, atol=1e-9)
    np.testing.assert_allclose(
        poisson(cell + np.array([9.0, -80.0, 200.0]), canvas, mask), poisson(cell, canvas, mask), atol=1e-9
    )
    outside = ~without_border(np.ones((20, 30), bool) if mask is None else mask)
    np.testing.assert_array_equal(poisson(cell, canvas, mask)[outside], canvas[outside])
