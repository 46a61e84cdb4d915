"""Where things lie on a phantom slide: the round spot of cells that a SurePath preparation leaves on the glass.

The machine lets the cells settle through a round chamber, so the spot is nearly a circle, a little thinner towards
the rim or in the middle, patchy, with a ragged edge. The map of it is coarse (512 x 512 over the spot): positions are
drawn from it in one go for the whole slide, pixels come later.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

CELLS_PER_MM2 = 350.0  # about 50,000 cells on a spot of 13 mm
_MAP_PX = 512
_MARGIN = 0.08  # of the diameter, of clean glass on each side


@dataclass(frozen=True)
class Deposit:
    """The spot of one slide.

    Attributes:
        size_level0: Of the slide, (width, height) in px; multiples of 16.
        centre_level0: Of the spot, (x, y) in px.
        diameter_level0: In px.
        density: (512, 512) float, cells in each square of the spot's bounding box, relative; sums to 1.
        cells: How many cells lie on it.
    """

    size_level0: tuple[int, int]
    centre_level0: tuple[float, float]
    diameter_level0: float
    density: NDArray[np.float64]
    cells: int

    def draw_xy(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """(count, 2): random places in level-0 px, by the density."""
        square = rng.choice(self.density.size, count, p=self.density.ravel())
        row, column = np.divmod(square, _MAP_PX)
        share = (np.stack([column, row], 1) + rng.random((count, 2))) / _MAP_PX - 0.5
        return np.asarray(self.centre_level0) + share * self.diameter_level0

    def draw_groups(
        self, count: int, mean_size: float, spread_px: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """(count, 2): places in groups of geometric size around common centres; `spread_px` for a pair."""
        sizes = 1 + rng.geometric(1 / max(mean_size - 1, 1), count)
        sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), count)) + 1]
        centres = np.repeat(self.draw_xy(len(sizes), rng), sizes, axis=0)[:count]
        spread = spread_px * np.sqrt(np.repeat(sizes, sizes)[:count] / 2)
        return centres + rng.normal(0, 1, (count, 2)) * spread[:, None]


def draw_deposit(diameter_mm: float, mpp: float, rng: np.random.Generator) -> Deposit:
    """A spot of about `diameter_mm`, its centre slightly off the middle of the glass."""
    diameter = diameter_mm * 1000 / mpp
    side = max(16, round(diameter * (1 + 2 * _MARGIN) / 16) * 16)
    centre = side / 2 + rng.uniform(-0.25, 0.25, 2) * _MARGIN * diameter
    density = _density(rng)
    covered_mm2 = (density > 0).mean() * diameter_mm**2
    crowding = float(np.clip(rng.lognormal(0, 0.25), 0.55, 1.8))
    return Deposit(
        size_level0=(side, side),
        centre_level0=(float(centre[0]), float(centre[1])),
        diameter_level0=diameter,
        density=density / density.sum(),
        cells=max(1, round(CELLS_PER_MM2 * crowding * covered_mm2)),
    )


def _density(rng: np.random.Generator) -> NDArray[np.float64]:
    """Relative density over the bounding box, 0 outside the ragged rim."""
    axis = (np.arange(_MAP_PX) + 0.5) / _MAP_PX * 2 - 1
    x, y = np.meshgrid(axis, axis)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    waves = np.arange(2, 60)
    turns = np.linspace(-np.pi, np.pi, 2048)
    waviness = np.cos(waves * turns[:, None] + rng.uniform(0, 2 * np.pi, 58)) @ (0.02 / waves * rng.normal(0, 1, 58))
    rim = np.interp(angle, turns, 0.965 + waviness)
    slope = rng.uniform(-0.15, 0.15, 2)
    falloff, thinning = rng.uniform(0.05, 0.35), rng.uniform(0, 0.6) * (rng.random() < 0.4)
    density = (1 - falloff * radius**2) * (1 - thinning * np.exp(-((radius / 0.35) ** 2)))
    density = density * (1 + slope[0] * x + slope[1] * y) * np.exp(0.25 * _patches(8, rng) + 0.35 * _patches(48, rng))
    return np.where(radius < rim, np.maximum(density, 0), 0.0)


def _patches(grid: int, rng: np.random.Generator) -> NDArray[np.float64]:
    noise = cv2.resize(rng.normal(0, 1, (grid, grid)), (_MAP_PX, _MAP_PX), interpolation=cv2.INTER_CUBIC)
    return np.asarray(noise, np.float64)
