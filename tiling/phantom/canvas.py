"""Outlines and textures in micrometres, rasterised at any µm/px.

All geometry is drawn from the random generator in µm before a pixel is touched, so one generator state gives one and
the same cell at every µm/px, and what is finer than a pixel averages out as it does in a scanner.
An outline is an (N, 2) float32 polygon of x, y in µm around the centre of the sprite.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Outline = NDArray[np.float32]
Plane = NDArray[np.float32]

PSF_UM = 0.26  # sigma of the blur of a 40x objective in focus (NA 0.75)
_SHIFT = 4  # fixed-point bits of a polygon corner for OpenCV


@dataclass(frozen=True)
class Canvas:
    """A grid of pixels over a rectangle of µm.

    Attributes:
        mpp: µm/px.
        shape: (height, width) in px.
        origin_um: x, y of the centre of pixel (0, 0).
        extent_um: Width and height wanted, the same at every mpp.
    """

    mpp: float
    shape: tuple[int, int]
    origin_um: tuple[float, float]
    extent_um: tuple[float, float]

    @classmethod
    def around(cls, outline: Outline, margin_um: float, mpp: float) -> "Canvas":
        """A canvas centred on 0, 0 with room for `outline` and its blur."""
        half = np.abs(outline).max(axis=0) + margin_um
        reach = np.ceil(half / mpp).astype(int) + int(np.ceil(4 * psf_px(mpp))) + 1
        x, y = int(reach[0]), int(reach[1])
        return cls(mpp, (2 * y + 1, 2 * x + 1), (-x * mpp, -y * mpp), (float(2 * half[0]), float(2 * half[1])))

    def window(self, outline: Outline, margin_um: float) -> tuple[tuple[slice, slice], "Canvas"]:
        """The part of this canvas that holds `outline`, as slices of its arrays and as a canvas."""
        low, high = outline.min(axis=0) - margin_um, outline.max(axis=0) + margin_um
        start = np.maximum(np.floor((low - self.origin_um) / self.mpp).astype(int), 0)
        stop = np.minimum(np.ceil((high - self.origin_um) / self.mpp).astype(int) + 1, self.shape[::-1])
        (x, y), (x_end, y_end) = start.tolist(), stop.tolist()
        origin = (self.origin_um[0] + x * self.mpp, self.origin_um[1] + y * self.mpp)
        extent = (float(high[0] - low[0]), float(high[1] - low[1]))
        return (slice(y, y_end), slice(x, x_end)), Canvas(self.mpp, (y_end - y, x_end - x), origin, extent)

    def fill(self, outline: Outline) -> Plane:
        """Share of each pixel inside the outline, (H, W) in 0..1."""
        finer = 4 if self.mpp > 0.6 else 2
        height, width = self.shape
        ink = np.zeros((height * finer, width * finer), np.uint8)
        points = ((outline - self._origin()) / self.mpp + 0.5) * finer - 0.5
        cv2.fillPoly(ink, [_fixed(points)], 255, cv2.LINE_8, _SHIFT)
        small = cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA)
        return np.multiply(small, 1 / 255, dtype=np.float32)

    def _origin(self) -> Outline:
        return np.array(self.origin_um, np.float32)

    def stroke(self, line: Outline, width_um: float, closed: bool) -> Plane:
        """A line of `width_um`, (H, W) in 0..1; thinner than a pixel it is fainter."""
        width_px = width_um / self.mpp
        thickness = max(1, round(width_px))
        ink = np.zeros(self.shape, np.uint8)
        points = (line - self._origin()) / self.mpp
        cv2.polylines(ink, [_fixed(points)], closed, 255, thickness, cv2.LINE_AA, _SHIFT)
        return np.multiply(ink, min(1.0, width_px / thickness) / 255, dtype=np.float32)

    def dots(self, xy_um: NDArray[np.float64], mass_um2: NDArray[np.float64]) -> Plane:
        """Points of given mass (density times area), some 0.7 µm wide."""
        ink = np.zeros(self.shape, np.float32)
        x, y = np.rint((xy_um - self.origin_um) / self.mpp).astype(int).T
        inside = (x >= 0) & (y >= 0) & (x < self.shape[1]) & (y < self.shape[0])
        np.add.at(ink, (y[inside], x[inside]), (mass_um2[inside] / self.mpp**2).astype(np.float32))
        side = 2 * int(0.3 / self.mpp) + 1
        return np.asarray(cv2.blur(ink, (side, side)), np.float32)

    def noise(self, rng: np.random.Generator, grain_um: float) -> Plane:
        """Smooth noise with grains of about `grain_um`, (H, W), mean 0, deviation about 1."""
        width, height = (max(2, int(extent / grain_um) + 3) for extent in self.extent_um)
        grid = rng.standard_normal((height, width), np.float32)
        shrinks = width > self.shape[1] or height > self.shape[0]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(grid, self.shape[::-1], interpolation=how), np.float32)


def psf_px(mpp: float) -> float:
    """Sigma of the optics' blur in px; never below what a pixel's own area does."""
    return max(PSF_UM / mpp, 0.35)


def _fixed(points: Outline) -> NDArray[np.int32]:
    return np.rint(points * (1 << _SHIFT)).astype(np.int32)


def rounded(rng: np.random.Generator, area_um2: float, elongation: float = 1.0, rough: float = 0.05) -> Outline:
    """A closed curve of low harmonics: nuclei, halos, round cells. Long side along x; `rough` is their size."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    order = np.arange(2, 8)
    size = rng.normal(0, rough, order.size) / (order - 1) ** 1.1
    phase = rng.uniform(0, 2 * np.pi, order.size)
    radius = 1 + (size[:, None] * np.cos(order[:, None] * angle + phase[:, None])).sum(axis=0)
    radius = np.maximum(radius, 0.35)
    return _of_area(np.stack([radius * np.cos(angle) * elongation, radius * np.sin(angle)], 1), area_um2)


def polygonal(rng: np.random.Generator, area_um2: float, elongation: float = 1.0, rough: float = 0.05) -> Outline:
    """A flat cell: five to eight corners, rounded, with sides that are bowed and a little ragged."""
    corners = int(rng.integers(5, 10))
    angle = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.32, 0.32, corners)) / corners
    radius = rng.uniform(0.78, 1.16, corners)
    points = np.stack([radius * np.cos(angle) * elongation, radius * np.sin(angle)], 1)
    for cut in (rng.uniform(0.06, 0.2), 0.2, 0.25, 0.25, 0.25):
        after = np.concatenate([points[1:], points[:1]])
        points = np.stack([(1 - cut) * points + cut * after, cut * points + (1 - cut) * after], 1).reshape(-1, 2)
    count = len(points)
    wave = rng.normal(0, 1, (4, 2)) * np.array([[1.0], [0.5], [0.26], [0.09]])
    turn = 2 * np.pi * np.arange(count)[:, None] / count * np.array([2, 5, 11, 23])
    ripple = 1 + rough * 0.5 * (np.cos(turn) @ wave[:, 0] + np.sin(turn) @ wave[:, 1])
    return _of_area(points * ripple[:, None], area_um2)


def tapered(rng: np.random.Generator, area_um2: float, elongation: float = 1.0, rough: float = 0.05) -> Outline:
    """A column: a broad free end at +x, drawn out to a foot at -x."""
    along = np.linspace(0, 1, 48)
    foot = rng.uniform(3.0, 10.0)
    width = (1 - np.exp(-foot * along)) * np.sqrt(np.clip(1 - np.clip((along - 0.75) / 0.25, 0, 1) ** 2.6, 0, 1))
    width *= 1 + rough * np.cos(along * rng.uniform(5, 11) + rng.uniform(0, 6))
    bend = rng.normal(0, 0.25) * (along - 0.5) ** 2
    x = (2 * along - 1) * elongation
    upper = np.stack([x, bend + 0.9 * width], 1)
    lower = np.stack([x, bend - 0.9 * width], 1)[::-1]
    return _of_area(np.concatenate([upper, lower[1:-1]]), area_um2)


def _of_area(points: NDArray[np.float64], area_um2: float) -> Outline:
    """Scaled to an area and moved so that its centre of mass is 0, 0."""
    after = np.concatenate([points[1:], points[:1]])
    cross = points[:, 0] * after[:, 1] - after[:, 0] * points[:, 1]
    centre = ((points + after) * cross[:, None]).sum(axis=0) / (3 * cross.sum())
    return np.asarray((points - centre) * np.sqrt(2 * area_um2 / abs(cross.sum())), np.float32)


def turned(outline: Outline, angle: float, shift_um: tuple[float, float] = (0.0, 0.0)) -> Outline:
    """Rotated by `angle` (radians) around 0, 0, then moved."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(outline @ np.array([[cos, sin], [-sin, cos]]) + shift_um, np.float32)


def radius_um(area_um2: float) -> float:
    """Radius of the disc of an area."""
    return float(np.sqrt(area_um2 / np.pi))
