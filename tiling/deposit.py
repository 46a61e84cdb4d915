"""Where the cells lie on a slide: the round deposit of a liquid-based preparation, the tissue, or all of it.

A SurePath deposit is a disc of scattered cells with a ragged edge. Thresholds and contours give the cells, not the
disc; so the disc is the circle that best parts a picture of "here lies something" into a full inside and an empty
outside. That holds for sparse and crowded slides, with dust outside, and where the deposit is cut off by the scan.
"""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import filters, measure, morphology

from papsmear.errors import InputError
from papsmear.tiling.reader import SlideReader

Area = Literal["disc", "tissue", "all"]

GAP_UM = {"disc": 75, "tissue": 25}  # empty places up to twice this wide count as covered
LEAST_OD = 0.035  # optical density, of any colour, from which something lies on the glass
LEAST_DIAMETER_UM = 200
OTHERWISE = "look at it, and use --area=tissue or --area=all for it"


@dataclass(frozen=True)
class Deposit:
    """The part of a slide to tile. `outlines_xy_level0`: polygons, (n, 2) each; `circle_level0`: (x, y, radius).

    `mask` (H, W) has pixels of `level0_px_per_px` level-0 pixels.
    """

    area: Area
    outlines_xy_level0: tuple[NDArray[np.float64], ...]
    mask: NDArray[np.bool_]
    level0_px_per_px: float
    circle_level0: tuple[float, float, float] | None = None

    def contains(self, xy_level0: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Which of the points (N, 2) lie in it, (N,)."""
        if self.circle_level0 is not None:
            x, y, radius = self.circle_level0
            return np.asarray(np.hypot(xy_level0[:, 0] - x, xy_level0[:, 1] - y) <= radius)
        column, row = (xy_level0 / self.level0_px_per_px).astype(int).T
        height, width = self.mask.shape
        inside: NDArray[np.bool_] = self.mask[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
        return inside

    def as_json(self, mpp: float) -> dict[str, Any]:
        """What slide.json says of it, `mpp` being the slide's."""
        circle = self.circle_level0
        return {
            "area": self.area,
            "circle_level0": None if circle is None else [round(v, 1) for v in circle],
            "diameter_mm": None if circle is None else round(2 * circle[2] * mpp / 1000, 3),
            "outlines_xy_level0": [outline.round(1).tolist() for outline in self.outlines_xy_level0],
        }


def overview_of(reader: SlideReader) -> tuple[NDArray[np.uint8], float]:
    """The small picture that the deposit is looked for on: 16 µm/px, finer (to 2 µm/px) for small slides."""
    long_um = max(reader.size_level0) * reader.mpp
    mpp = float(np.clip(long_um / 1024, 2, 16))
    return reader.overview(max(1, round(long_um / mpp)))


def find_deposit(reader: SlideReader, area: Area, rgb: NDArray[np.uint8], level0_px_per_px: float) -> Deposit:
    """The area to tile, from the overview `rgb` (H, W, 3). InputError where there is nothing of the kind."""
    if area == "all":
        width, height = reader.size_level0
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
        return Deposit(area, (corners,), np.ones(rgb.shape[:2], bool), level0_px_per_px)
    um_per_px = reader.mpp * level0_px_per_px
    stained = stained_mask(rgb)
    covered = _covered(stained, GAP_UM[area] / um_per_px)
    if area == "tissue":
        return _tissue(reader, covered, level0_px_per_px)
    if covered.mean() > 0.9:
        raise InputError(f"{reader.path}: no round cell deposit found, the whole slide is covered; {OTHERWISE}")
    circle = fit_disc(covered)
    if circle is None or 2 * circle[2] * um_per_px < LEAST_DIAMETER_UM:
        raise InputError(f"{reader.path}: no round cell deposit found; {OTHERWISE}")
    x, y, radius = (v * level0_px_per_px for v in circle)
    turn = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    outline = np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1)
    return Deposit(area, (outline,), covered, level0_px_per_px, (x, y, radius))


def _tissue(reader: SlideReader, covered: NDArray[np.bool_], level0_px_per_px: float) -> Deposit:
    if not covered.any():
        raise InputError(f"{reader.path}: nothing stained found on the slide; look at it, and use --area=all for it")
    padded = np.pad(covered, 1)
    contours = measure.find_contours(padded.astype(float), 0.5)
    outlines = []
    for rows_columns in contours:
        polygon = measure.approximate_polygon(rows_columns, 1)
        outlines.append((polygon[:, ::-1] - 0.5) * level0_px_per_px)  # less the padding, from pixel centres
    return Deposit("tissue", tuple(outlines), covered, level0_px_per_px)


def stained_mask(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels of (H, W, 3) that differ from clean glass: (H, W).

    By their optical density against the glass, in whichever colour it is largest, above the noise of the glass itself.
    A threshold like Otsu's would part the dark cells from the faint ones.
    """
    grey = rgb.min(axis=2)
    scanned = grey < 255  # pure white is what scanners fill in where they did not look
    if not scanned.any():
        return np.zeros(grey.shape, bool)
    values = grey[scanned]
    parting = filters.threshold_otsu(values) if np.ptp(values) else 0
    glass = np.median(rgb[scanned][values >= parting], axis=0)
    density = np.log((glass + 1) / (rgb.astype(np.float32) + 1)).max(axis=2)
    noise = 1.4826 * float(np.median(np.abs(density[scanned & (density < 2 * LEAST_OD)])))
    mask: NDArray[np.bool_] = scanned & (density > max(LEAST_OD, 4 * noise))
    return mask


def _covered(stained: NDArray[np.bool_], gap_px: float) -> NDArray[np.bool_]:
    """`stained` (H, W) with gaps up to 2 `gap_px` closed, and what is smaller than a cell group removed."""
    pad = int(np.ceil(gap_px)) + 1
    far = ndimage.distance_transform_edt(np.pad(~stained, pad, constant_values=True)) > gap_px
    closed = ndimage.distance_transform_edt(~far) > gap_px if far.any() else ~far
    closed = closed[pad:-pad, pad:-pad] | stained
    large: NDArray[np.bool_] = morphology.remove_small_objects(closed, max_size=int(gap_px**2))
    return large


def fit_disc(covered: NDArray[np.bool_]) -> tuple[float, float, float] | None:
    """The circle (x, y, radius) in pixels that best parts `covered` (H, W) into a full inside and an empty outside.

    Maximum likelihood of two coverages, one inside and one outside the circle; the centre is searched by steps that
    halve, and for each centre all radii are judged at once. None where no circle does it well.
    """
    coarse, coarse_shrink = _shrunk(covered, 128)
    found = [_search(coarse, x, y, step=16, until=0.5) for x, y in _starts(coarse)]
    best = max(found, default=None)
    if best is None or best[0] <= 0:
        return None
    fine, shrink = _shrunk(covered, 400)
    x, y = ((v + 0.5) * coarse_shrink / shrink - 0.5 for v in best[1:3])
    _, x, y, radius, inside, outside = _search(fine, x, y, step=2, until=0.2)
    if inside < 0.4 or outside > 0.25 * inside:
        return None
    return ((x + 0.5) * shrink, (y + 0.5) * shrink, radius * shrink)


def _starts(small: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Centres to search from: of all that is covered, and of its largest piece."""
    labels, n = ndimage.label(small > 0.5)
    if n == 0:
        return []
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return [ndimage.center_of_mass(piece)[::-1] for piece in (small, largest)]


def _shrunk(covered: NDArray[np.bool_], side_px: int) -> tuple[NDArray[np.float64], float]:
    """Coverage (h, w) of at most `side_px` a side, and how many pixels of `covered` (H, W) one of its spans."""
    shrink = max(1.0, max(covered.shape) / side_px)
    size = [max(1, round(side / shrink)) for side in covered.shape[::-1]]
    small = cv2.resize(covered.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return small.astype(np.float64), shrink


def _search(small: NDArray[np.float64], x: float, y: float, step: float, until: float) -> tuple[float, ...]:
    best = _best_radius(small, x, y)
    while step > until:
        around = ((step, 0), (-step, 0), (0, step), (0, -step))
        better = max(_best_radius(small, best[1] + dx, best[2] + dy) for dx, dy in around)
        if better[0] > best[0]:
            best = better
        else:
            step /= 2
    return best


def _best_radius(small: NDArray[np.float64], x: float, y: float) -> tuple[float, ...]:
    """(log-likelihood gain over one coverage for all, x, y, radius, coverage inside, coverage outside)."""
    row, column = np.ogrid[: small.shape[0], : small.shape[1]]
    ring = (2 * np.hypot(row - y, column - x) + 0.5).astype(int).ravel()  # rings half a pixel wide
    n: NDArray[np.float64] = np.cumsum(np.bincount(ring), dtype=np.float64)
    k: NDArray[np.float64] = np.cumsum(np.bincount(ring, small.ravel()), dtype=np.float64)
    gain = _likelihood(k, n) + _likelihood(k[-1] - k, n[-1] - n) - _likelihood(k[-1:], n[-1:])
    inside, outside = k / np.maximum(n, 1), (k[-1] - k) / np.maximum(n[-1] - n, 1)
    gain[inside <= outside] = -np.inf
    at = int(np.argmax(gain))
    return (float(gain[at]), x, y, at / 2 + 0.25, float(inside[at]), float(outside[at]))


def _likelihood(k: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-likelihood of `k` covered of `n` pixels at their own coverage k / n."""
    share = np.clip(k / np.maximum(n, 1), 1e-9, 1 - 1e-9)
    gain: NDArray[np.float64] = k * np.log(share) + (n - k) * np.log(1 - share)
    return gain
