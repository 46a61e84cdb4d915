"""The regular grid of tiles over a slide, and the picture that shows it.

The grid starts at the slide's own corner (0, 0), not at the deposit's, so that two runs whose deposits differ a
little still share their tiles. It has no overlap.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.tiling.deposit import Deposit

Inside = Literal["centre", "square"]

PICTURE_PX = 2048
OUTLINE_RGB = (0, 150, 60)
GRID_RGB = (40, 90, 200)


def grid(size_level0: tuple[int, int], step_level0: float) -> NDArray[np.int64]:
    """Top-left corners (N, 2) of all tiles of side `step_level0` that lie wholly on the slide, row by row.

    The step is seldom a whole number: tile i stands at round(i * step), halves up, so errors do not add up.
    """
    columns, rows = (_positions(side, step_level0) for side in size_level0)
    x, y = np.meshgrid(columns, rows)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _positions(side_level0: int, step_level0: float) -> NDArray[np.int64]:
    index = np.arange(int(side_level0 / step_level0) + 1)
    corner = np.floor(index * step_level0 + 0.5).astype(np.int64)
    on_slide: NDArray[np.int64] = corner[corner + step_level0 <= side_level0 + 1e-6]
    return on_slide


def tiles_in(
    deposit: Deposit, xy_level0: NDArray[np.int64], step_level0: float, inside: Inside = "centre"
) -> NDArray[np.int64]:
    """Those of the tiles (N, 2) that lie in the deposit: with their centre, or with the whole square.

    A square is judged by points along its sides, a sixteenth of a side apart, so a gap narrower than that is not seen.
    """
    if len(xy_level0) == 0:
        return xy_level0
    if inside == "centre":
        return xy_level0[deposit.contains(xy_level0 + step_level0 / 2)]
    along = np.linspace(0, step_level0, 17)
    zero, full = np.zeros(17), np.full(17, step_level0)
    rim = np.concatenate([np.stack(pair, 1) for pair in ((along, zero), (along, full), (zero, along), (full, along))])
    held = np.ones(len(xy_level0), bool)
    for point in rim:
        held &= deposit.contains(xy_level0 + point)
    return xy_level0[held]


def draw(
    rgb: NDArray[np.uint8],
    level0_px_per_px: float,
    deposit: Deposit,
    xy_level0: NDArray[np.int64],
    step_level0: float,
) -> NDArray[np.uint8]:
    """The overview `rgb` (H, W, 3), at most 2,048 px a side, with the grid's tiles and the deposit's outline on it."""
    shrink = max(1.0, max(rgb.shape) / PICTURE_PX)
    scale = 1 / (level0_px_per_px * shrink)
    size = (max(1, round(rgb.shape[1] / shrink)), max(1, round(rgb.shape[0] / shrink)))
    picture = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    lines = picture.copy()
    for x, y in xy_level0:
        a, b = (
            (round(float(v) * scale), round(float(w) * scale)) for v, w in ((x, y), (x + step_level0, y + step_level0))
        )
        cv2.rectangle(lines, a, b, GRID_RGB, 1)
    picture = cv2.addWeighted(lines, 0.5, picture, 0.5, 0)
    outlines = [np.rint(outline * scale).astype(np.int32) for outline in deposit.outlines_xy_level0]
    thickness = max(2, max(size) // 400)
    cv2.polylines(picture, outlines, isClosed=True, color=OUTLINE_RGB, thickness=thickness, lineType=cv2.LINE_AA)
    return np.asarray(picture, np.uint8)
