"""Real cells for phantom slides, cut out along their masks, as sprites at the slide's µm/px.

How much light a cell lets through is its colour over the colour of the empty glass in its own picture.
"""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.tiling.phantom.cutouts import TYPICAL_UM, CutOut
from papsmear.tiling.phantom.sprite import Sprite

_DARKEST_GLASS = 190.0


class RealCells:
    """Cells of one fold's cut-outs, at `mpp` µm/px, each time turned, resized and stained a little differently."""

    def __init__(self, cutouts: list[CutOut], mpp: float) -> None:
        self._mpp = mpp
        self.kinds = tuple(dict.fromkeys(cell.kind for cell in cutouts))
        self._of_kind = {kind: [cell for cell in cutouts if cell.kind == kind] for kind in self.kinds}

    def cell(self, kind: str, rng: np.random.Generator) -> Sprite:
        """A cell of one of `kinds`."""
        choice = self._of_kind[kind]
        cutout = choice[int(rng.integers(len(choice)))]
        density, cell, nucleus = _prepared(cutout)
        scale = _scale(cutout, int(cell.sum()), self._mpp, rng)
        matrix, size = _turn_and_scale(cell, scale, float(rng.uniform(0, 360)))
        density = density * np.float32(rng.lognormal(0, 0.08))
        if scale < 1:  # average first: warping alone would skip pixels
            density = np.asarray(cv2.GaussianBlur(density, (0, 0), 0.4 / scale), np.float32)
        density = np.asarray(cv2.warpAffine(density, matrix, size, flags=cv2.INTER_LINEAR), np.float32)
        edge = np.zeros(density.shape[:2], bool)
        edge[[0, -1]], edge[:, [0, -1]] = True, True
        density[edge] = 0
        cell, nucleus = (
            cv2.warpAffine(part.astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST).astype(bool)
            for part in (cell, nucleus)
        )
        return Sprite(np.exp(-density).astype(np.float32), kind, cell, nucleus)


@lru_cache(maxsize=1024)
def _prepared(cutout: CutOut) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Optical density (H, W, 3) of the cell alone, 0 around it with a soft edge; the cell; its nucleus."""
    picture, (around, cell, nucleus) = cutout.read()
    rgb = picture.astype(np.float32)
    glass = _glass_colour(rgb, around, cell)
    density = np.maximum(-np.log(np.maximum(rgb, 4) / glass), 0)
    soft = cv2.GaussianBlur(cell.astype(np.float32), (0, 0), 1.5)
    soft = np.clip(2 * soft - 0.6, 0, 1)  # reaches 0 about a pixel outside the mask
    return np.asarray(density * soft[:, :, None], np.float32), cell, nucleus


def _glass_colour(rgb: NDArray[np.float32], around: NDArray[np.bool_], cell: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Colour of the empty glass: the brighter part of what lies around the cell, other cells left out so.

    Padding that a copy added is flat and not glass; pictures filled by the cell fall back on its brightest pixels.
    Where a cell lies on others, nothing around it is glass; then the colour stops at `_DARKEST_GLASS`.
    """
    flat = np.ptp(rgb, axis=1).max(-1) < 12, np.ptp(rgb, axis=0).max(-1) < 12
    real = ~(flat[0][:, None] | flat[1][None, :])
    level = rgb.sum(-1)
    free = around & real
    if free.sum() < 50:
        free = cell
        bright = free & (level >= np.quantile(level[free], 0.98))
    else:
        bright = free & (level >= np.quantile(level[free], 0.6))
    return np.asarray(np.maximum(np.median(rgb[bright], axis=0), _DARKEST_GLASS), np.float32)


def _scale(cutout: CutOut, area_px: int, mpp: float, rng: np.random.Generator) -> float:
    """Factor from the picture's pixels to the slide's."""
    if cutout.mpp is not None:
        return float(cutout.mpp / mpp * rng.lognormal(0, 0.03))
    diameter_um = TYPICAL_UM[cutout.kind] * rng.lognormal(0, 0.12)
    return float(diameter_um / mpp / (2 * np.sqrt(area_px / np.pi)))


def _turn_and_scale(
    cell: NDArray[np.bool_], scale: float, degrees: float
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """The affine map that turns and scales the cell's box into the middle of an array of the returned size."""
    rows, columns = np.flatnonzero(cell.any(1)), np.flatnonzero(cell.any(0))
    corners = np.array([(x, y, 1) for x in columns[[0, -1]] for y in rows[[0, -1]]], float)
    middle = corners[:, :2].mean(0)
    matrix = np.asarray(cv2.getRotationMatrix2D((float(middle[0]), float(middle[1])), degrees, scale), np.float64)
    spread = np.ptp(corners @ matrix.T, axis=0)
    width, height = (int(np.ceil(side)) + 8 for side in spread)
    matrix[:, 2] += np.array([(width - 1) / 2, (height - 1) / 2]) - middle
    return matrix, (width, height)
