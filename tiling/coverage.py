"""What covers a slide, on a small picture of it: how much more light each place takes away than the glass around it.

Lamp, cover slip and mounting make glass of many tints on one slide, so it is judged by the glass nearby. What covers a
place evenly and darkly is a pen mark; there, and where the scanner did not look, nothing is known of cells.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

LEAST_OD = 0.03  # optical density, of any colour, from which something lies on the glass
GLASS_UM, GLASS_OD = 600, 0.12  # glass is no narrower than this, and no darker against the clearest
MARK_UM, MARK_OD, MARK_SPREAD = 250, 0.5, 0.2  # a pen mark is nowhere lighter over this width, and even to this share
UNSCANNED = 0.1  # how much it tells that the scanner did not look: it leaves out what it takes for empty

_OD = np.log(256 / (np.arange(256) + 1.0)).astype(np.float32)  # of each grey level


def stained_mask(rgb: NDArray[np.uint8], um_per_px: float = 16) -> NDArray[np.bool_]:
    """Pixels of (H, W, 3) that differ from clean glass, pen marks too: (H, W)."""
    density, weight = density_of(rgb, um_per_px)
    return np.asarray(density > least_density(density, weight == 1))


def density_of(rgb: NDArray[np.uint8], um_per_px: float) -> tuple[Plane, Plane]:
    """Optical density over the glass nearby, in the colour where it is largest, and how much it tells: (H, W) each.

    It tells nothing (0) of cells under a pen mark, little (`UNSCANNED`) where the scanner did not look, else all (1).
    The glass nearby is what remains when all that is narrower than `GLASS_UM` is taken away (a grey opening).
    """
    white = np.asarray(cv2.inRange(rgb, (255, 255, 255), (255, 255, 255)) > 0)  # where scanners did not look
    density = np.asarray(cv2.LUT(rgb, _OD), np.float32)
    small, small_white = (_shrunk(plane, um_per_px / 64) for plane in (density, white.astype(np.float32)))
    scanned = small_white < 0.01
    glass = np.percentile(small[scanned], 2, axis=0) if scanned.any() else np.zeros(3)
    if glass.max() < _OD[252]:  # the glass itself is white
        white[:], scanned[:] = False, True
    over, small_over = (
        np.maximum.reduce([plane[..., channel] - np.float32(glass[channel]) for channel in range(3)])
        for plane in (density, small)
    )
    far = 9.0
    low = _least_around(np.where(scanned, small_over, far), GLASS_UM / 64, far)
    low = -_least_around(np.where(low < far, -low, far), GLASS_UM / 64, far)
    nearby = cv2.resize(np.clip(low, -GLASS_OD, GLASS_OD), white.shape[::-1], interpolation=cv2.INTER_LINEAR)
    weight = np.where(white, np.float32(UNSCANNED), np.float32(1))
    weight[_marks(np.where(white, np.float32(0), over), um_per_px)] = 0
    return over - nearby, weight


def _marks(over: Plane, um_per_px: float) -> NDArray[np.bool_]:
    """Pen marks with a margin: dark all over some width and even, as no cells are. `over`: density (H, W)."""
    px_um = max(16, um_per_px)
    side = 2 * round(MARK_UM / px_um / 2) + 1
    small, squares = (_shrunk(plane, um_per_px / px_um) for plane in (over, over**2))
    mean, square = (cv2.blur(plane, (side, side)) for plane in (small, squares))
    core = (_least_around(small, side, 0) > MARK_OD) & (square < (1 + MARK_SPREAD**2) * mean**2)
    margin = side + 2 * (side // 4)
    marks = cv2.dilate(core.astype(np.uint8), np.ones((margin, margin), np.uint8))
    return np.asarray(cv2.resize(marks, over.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0)


def _shrunk(plane: Plane, scale: float) -> Plane:
    """A plane (H, W) or (H, W, 3) at `scale` of its size, at most 1."""
    size = [max(1, round(side * min(1.0, scale))) for side in plane.shape[1::-1]]
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), np.float32)


def _least_around(plane: Plane, width_px: float, beyond: float) -> Plane:
    """The least of `plane` (H, W) over squares of `width_px` around each pixel; `beyond` its edge."""
    side = 2 * int(width_px / 2) + 1
    kernel = np.ones((side, side), np.uint8)
    return np.asarray(cv2.erode(plane, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=beyond), np.float32)


def least_density(density: Plane, known: NDArray[np.bool_]) -> float:
    """The density from which something lies on the glass: above the noise of the glass itself."""
    some, there = density[::3, ::3], known[::3, ::3]
    glass = some[there & (some < 2 * LEAST_OD)]
    noise = 1.4826 * float(np.median(np.abs(glass))) if glass.size else 0.0
    return max(LEAST_OD, 4 * noise)


def closed(stained: NDArray[np.bool_], gap_px: float) -> NDArray[np.bool_]:
    """`stained` (H, W) with gaps up to 2 `gap_px` closed."""
    pad = int(np.ceil(gap_px)) + 1
    empty = np.pad(~stained, pad, constant_values=True).astype(np.uint8)
    near = cv2.distanceTransform(empty, cv2.DIST_L2, 5) <= gap_px
    if near.all():
        return near[pad:-pad, pad:-pad]
    closed = cv2.distanceTransform(near.astype(np.uint8), cv2.DIST_L2, 5) > gap_px
    return np.asarray(closed[pad:-pad, pad:-pad] | stained)
