"""Gradient-domain pasting: the discrete Poisson equation with the canvas as boundary (Pérez, Gangnet & Blake 2003).

The result f takes the cell's gradients inside the pasted region Ω and the canvas's values around it (eq. 3; discrete
eq. 7, with the guidance v = g_p - g_q of eq. 11). Written as f = g + u (eq. 4 and 5), u is harmonic in Ω and equals
canvas minus cell on its boundary: a smooth correction of the cell's colour. On a rectangle the sine transform inverts
the Laplacian exactly; any other region is solved by sparse factorisation.

Shapes: H x W the cell's picture, C colours, P pixels of Ω.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dstn
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu

Doubles = NDArray[np.float64]
Mask = NDArray[np.bool_]

_NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def poisson(cell: NDArray[np.generic], canvas: NDArray[np.generic], inside: Mask | None = None) -> Doubles:
    """The cell (H, W, C) pasted onto the canvas (H, W, C) under it, by its gradients; not rounded or clipped.

    `inside` (H, W) is Ω; the outermost pixels are never in it, since the cell's gradient is not known there. None: all
    other pixels. Outside Ω the result is the canvas.
    """
    g, target = np.asarray(cell, np.float64), np.asarray(canvas, np.float64)
    result = target.copy()
    if min(g.shape[:2]) < 3:
        return result
    if inside is None:
        result[1:-1, 1:-1] = g[1:-1, 1:-1] + harmonic_rectangle(target - g)
        return result
    region = inside.copy()
    region[[0, -1]] = region[:, [0, -1]] = False
    if region.any():
        result[region] = g[region] + harmonic(target - g, region)
    return result


def harmonic_rectangle(values: Doubles) -> Doubles:
    """The harmonic function (H - 2, W - 2, C) inside a rectangle with the outermost pixels of `values` (H, W, C).

    The sine transform (DST-I) diagonalises the five-point Laplacian (Buzbee, Golub & Nielson 1970).
    """
    height, width = values.shape[0] - 2, values.shape[1] - 2
    b = np.zeros((height, width, values.shape[2]))
    b[0] += values[0, 1:-1]
    b[-1] += values[-1, 1:-1]
    b[:, 0] += values[1:-1, 0]
    b[:, -1] += values[1:-1, -1]
    down, across = (2 - 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) for n in (height, width))
    eigenvalues = (down[:, None] + across)[:, :, None]  # (H - 2, W - 2, 1)
    return np.asarray(_sines(_sines(b) / eigenvalues))


def _sines(values: Doubles) -> Doubles:
    """The orthonormal sine transform over both sides, which is its own inverse."""
    return np.asarray(dstn(values, type=1, axes=(0, 1), norm="ortho"))


def harmonic(values: Doubles, inside: Mask) -> Doubles:
    """The harmonic function (P, C) in `inside` (H, W), whose pixels next to it are those of `values` (H, W, C)."""
    rows, columns = np.nonzero(inside)
    number = np.full(inside.shape, -1)
    number[rows, columns] = np.arange(len(rows))
    b = np.zeros((len(rows), values.shape[2]))
    firsts, seconds = [], []
    for down, right in _NEIGHBOURS:
        at = (rows + down, columns + right)
        unknown = inside[at]
        b[~unknown] += values[at][~unknown]
        firsts.append(np.flatnonzero(unknown))
        seconds.append(number[at][unknown])
    i, j = np.concatenate(firsts), np.concatenate(seconds)
    every = np.arange(len(rows))
    entries = np.concatenate([np.full(len(rows), 4.0), np.full(len(i), -1.0)])
    laplacian = coo_array((entries, (np.concatenate([every, i]), np.concatenate([every, j]))), shape=(len(rows),) * 2)
    factors = splu(laplacian.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
    return np.asarray(factors.solve(b))
