"""Where the cells lie on a slide: the round deposit of a liquid-based preparation, the tissue, or all of it.

It is looked for on a small picture of the slide, by what covers the glass (see `coverage`). What cannot be a deposit is
refused with a picture.
"""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.errors import InputError
from papsmear.tiling.circle import Circle, fit_circle
from papsmear.tiling.coverage import closed, density_of, least_density
from papsmear.tiling.reader import SlideReader

Area = Literal["disc", "tissue", "all"]

GAP_UM = {"disc": 100, "tissue": 25}  # empty places up to twice this wide count as covered
LEAST_PIECE_UM = 75  # side of the smallest piece of tissue; less is dust
LEAST_UM, MOST_UM = 200, 26_000  # diameters of a disc; the glass is 26 mm wide
LEAST_OF_SLIDE, MOST_OF_SLIDE = 0.3, 0.9  # its diameter to the slide's short side, its area to the slide's
LEAST_CORE, LEAST_SEEN, LEAST_PARTED = 0.2, 0.1, 0.4  # see `Circle`
MOST_OUTSIDE = 0.4  # coverage outside of a disc, to that inside
OTHERWISE = "look at it, and use --area=tissue or --area=all for it"
ALL_OF_IT = "look at it, and use --area=all for it"


class DepositError(InputError):
    """No plausible deposit. It carries what a picture of the failure needs.

    Attributes:
        overview: The small picture (H, W, 3) that was looked at.
        level0_px_per_px: How many level-0 pixels one of its pixels spans.
        outlines_xy_level0: Outlines (n, 2) of what was found and not believed, if anything.
    """

    def __init__(
        self,
        message: str,
        overview: NDArray[np.uint8],
        level0_px_per_px: float,
        outlines_xy_level0: tuple[NDArray[np.float64], ...] = (),
    ) -> None:
        super().__init__(message)
        self.overview, self.level0_px_per_px = overview, level0_px_per_px
        self.outlines_xy_level0 = outlines_xy_level0

    def __reduce__(self) -> tuple[type["DepositError"], tuple[Any, ...]]:
        """So that it passes between processes."""
        return DepositError, (str(self), self.overview, self.level0_px_per_px, self.outlines_xy_level0)


@dataclass(frozen=True)
class Deposit:
    """The part of a slide to tile.

    Attributes:
        area: What was looked for.
        outlines_xy_level0: Polygons, (n, 2) each; a disc's may reach beyond the slide.
        mask: (H, W), where something lies on the glass; pixels of `level0_px_per_px` level-0 pixels.
        level0_px_per_px: See `mask`.
        circle_level0: (x, y, radius) of a disc.
        confidence: From 0 to 1. Of a disc, the share of its rim that the picture shows (see `Circle`): a rim cut off
            by the scan or hidden by a pen is not seen. Of tissue, the share of what is stained that is stained
            at least twice as much as it takes to be seen. 1 for all of the slide, which is not looked for.
    """

    area: Area
    outlines_xy_level0: tuple[NDArray[np.float64], ...]
    mask: NDArray[np.bool_]
    level0_px_per_px: float
    circle_level0: tuple[float, float, float] | None = None
    confidence: float = 1.0

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
            "confidence": round(self.confidence, 3),
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
    """The area to tile, from the overview `rgb` (H, W, 3). DepositError where nothing plausible of the kind is."""
    if area == "all":
        width, height = reader.size_level0
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
        return Deposit(area, (corners,), np.ones(rgb.shape[:2], bool), level0_px_per_px)
    look = _disc if area == "disc" else _tissue
    deposit, doubt = look(rgb, level0_px_per_px, reader.mpp * level0_px_per_px)
    if doubt:
        raise DepositError(f"{reader.path}: {doubt}", rgb, level0_px_per_px, deposit.outlines_xy_level0)
    return deposit


def _disc(rgb: NDArray[np.uint8], level0_px_per_px: float, um_per_px: float) -> tuple[Deposit, str]:
    """The best disc, and what speaks against it."""
    density, weight = density_of(rgb, um_per_px)
    known, gap_px = weight == 1, GAP_UM["disc"] / um_per_px
    covered = closed(known & (density > least_density(density, known)), gap_px) & known
    circle = fit_circle(covered, weight, gap_px)
    if circle is None:
        doubt = "nothing lies on the glass" if not covered.any() else "what lies on the glass is spread evenly"
        return Deposit("disc", (), covered, level0_px_per_px), f"no round cell deposit found: {doubt}; {OTHERWISE}"
    x, y, radius = (v * level0_px_per_px for v in (circle.x, circle.y, circle.radius))
    turn = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    outline = np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1)
    deposit = Deposit("disc", (outline,), covered, level0_px_per_px, (x, y, radius), circle.confidence)
    doubt = _doubt(circle, covered, um_per_px)
    return deposit, doubt and f"no round cell deposit found: {doubt}; {OTHERWISE}"


def _doubt(circle: Circle, covered: NDArray[np.bool_], um_per_px: float) -> str:
    """Why the circle is no deposit; empty if it may be one."""
    diameter_um, short_um = 2 * circle.radius * um_per_px, min(covered.shape) * um_per_px
    row, column = np.ogrid[: covered.shape[0], : covered.shape[1]]
    held = float(((column + 0.5 - circle.x) ** 2 + (row + 0.5 - circle.y) ** 2 <= circle.radius**2).mean())
    best = f"the best circle, of {diameter_um / 1000:.2g} mm,"
    if covered.mean() > MOST_OF_SLIDE:
        return f"{covered.mean():.0%} of the slide is covered"
    if diameter_um > MOST_UM:
        return f"{best} is wider than the glass"
    if diameter_um < max(LEAST_UM, LEAST_OF_SLIDE * short_um):
        return f"{best} is too small on a slide of {short_um / 1000:.2g} mm"
    if held > MOST_OF_SLIDE:
        return f"{best} holds {held:.0%} of the slide"
    if circle.core < LEAST_CORE:
        return f"{best} is covered to {circle.core:.0%} only"
    if circle.outside > MOST_OUTSIDE * circle.inside:
        return f"{best} is covered to {circle.inside:.0%} inside and to {circle.outside:.0%} outside"
    if circle.seen < LEAST_SEEN:
        return f"of {best} only {circle.seen:.0%} of the rim is in sight"
    if circle.parted < LEAST_PARTED:
        return f"{best} has no clear rim: {circle.parted:.0%} of what is in sight parts covered from empty"
    return ""


def _tissue(rgb: NDArray[np.uint8], level0_px_per_px: float, um_per_px: float) -> tuple[Deposit, str]:
    """All tissue, and what speaks against it."""
    density, weight = density_of(rgb, um_per_px)
    known = weight == 1
    least = least_density(density, known)
    stained = known & (density > least)
    covered = closed(stained, GAP_UM["tissue"] / um_per_px) & known
    _, labels = cv2.connectedComponents(covered.astype(np.uint8), connectivity=8)
    large = np.bincount(labels.ravel()) >= (LEAST_PIECE_UM / um_per_px) ** 2
    large[0] = False
    covered = large[labels]
    clear = float((density[covered & stained] > 2 * least).mean()) if covered.any() else 0.0
    deposit = Deposit("tissue", _outlines(covered, level0_px_per_px), covered, level0_px_per_px, confidence=clear)
    if not covered.any():
        return deposit, f"nothing stained found on the slide; {ALL_OF_IT}"
    if covered.mean() > MOST_OF_SLIDE:
        return deposit, f"{covered.mean():.0%} of the slide is stained, so no glass to tell it from; {ALL_OF_IT}"
    return deposit, ""


def _outlines(mask: NDArray[np.bool_], level0_px_per_px: float) -> tuple[NDArray[np.float64], ...]:
    """Polygons around the pieces of `mask` and around their holes."""
    double = np.repeat(np.repeat(mask.astype(np.uint8), 2, 0), 2, 1)  # OpenCV's contours pass through pixel centres
    contours, _ = cv2.findContours(double, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    polygons = (cv2.approxPolyDP(contour, 2, closed=True)[:, 0] for contour in contours)
    return tuple((polygon + 0.5) / 2 * level0_px_per_px for polygon in polygons)
