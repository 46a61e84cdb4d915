"""One phantom slide: what lies on the glass, and its pixels strip by strip.

Light passes through everything in its way, so optical densities add up. They are added as whole numbers: the sum is
the same in any order, and a cell that crosses the border of two strips is the same on both sides. A slide has tens of
thousands of cells but draws a few hundred, each used many times turned and flipped; abnormal cells, which are few,
are each drawn for themselves. Pixels are made in blocks that fit the processor's cache, so that a wide slide takes
little more memory than a narrow one.

Depths are µm above the glass's middle plane. The glass is never quite flat, so the cells of one neighbourhood are in
focus together, and the scanner's three planes see different neighbourhoods sharp.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from papsmear import seeds
from papsmear.tiling.phantom.deposit import Deposit, draw_deposit
from papsmear.tiling.phantom.drawing import OTHER_KINDS, Stain, draw_cell, draw_other, draw_stain
from papsmear.tiling.phantom.glass import Glass
from papsmear.tiling.phantom.ink import Ink, add, blurred, ink_of, light_through, pad_px, turned, turned_points
from papsmear.tiling.phantom.sprite import Sprite
from papsmear.tiling.phantom.svs import TILE_PX

_POOL, _POOL_OTHER, _POOL_ABNORMAL = 192, 64, 400
_BLUR_PER_UM = 0.33  # sigma of the blur in µm, per µm out of focus (an objective of NA 0.65 to 0.75)
_BLUR_STEP_PX = 0.5
_BLURRED_BYTES = 96e6  # of things out of focus, kept for their next use
_BLOCK_PX = 2048

# Shares of the kinds of cells. Normal: a woman of reproductive age. Abnormal: one lesion a slide.
_NORMAL = {
    "normal_superficiel": 0.33,
    "normal_intermediate": 0.42,
    "im_Superficial-Intermediate": 0.10,
    "im_Parabasal": 0.05,
    "im_Metaplastic": 0.05,
    "normal_columnar": 0.05,
}
_LESIONS = (
    {"light_dysplastic": 0.65, "im_Koilocytotic": 0.25, "moderate_dysplastic": 0.1},
    {"moderate_dysplastic": 0.35, "severe_dysplastic": 0.45, "carcinoma_in_situ": 0.1, "im_Dyskeratotic": 0.1},
    {"severe_dysplastic": 0.35, "carcinoma_in_situ": 0.55, "im_Dyskeratotic": 0.1},
)


class Cells(Protocol):
    """Where a slide's cells come from: drawn, or cut out of real pictures."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that there are."""
        ...

    def cell(self, kind: str, rng: np.random.Generator) -> Sprite:
        """A cell of one of `kinds`."""
        ...


@dataclass(frozen=True)
class DrawnCells:
    """Cells drawn in the slide's stain."""

    mpp: float
    stain: Stain
    kinds: tuple[str, ...] = (*_NORMAL, *{kind: None for lesion in _LESIONS for kind in lesion})

    def cell(self, kind: str, rng: np.random.Generator) -> Sprite:
        """A cell of one of `kinds`."""
        return draw_cell(kind, self.mpp, self.stain, rng)


@dataclass(frozen=True)
class Finding:
    """An abnormal cell of a slide: its kind and its outline (P, 2), x and y in level-0 px."""

    kind: str
    outline_level0: NDArray[np.int32]


class Scene:
    """Everything on one slide; the same arguments give the same slide.

    Args:
        seed: Of the slide.
        site: Name of the site, which has a stain of its own.
        diameter_mm: Of the spot of cells.
        mpp: µm per px of level 0.
        abnormal: Share of abnormal cells, at least one; 0 for a negative slide.
        cells: Real cells to use; drawn ones without.
    """

    def __init__(
        self, seed: int, site: str, diameter_mm: float, mpp: float, abnormal: float, cells: Cells | None = None
    ) -> None:
        self._seed, self._mpp = seed, mpp
        self.stain = draw_stain(seeds.rng(seed, "stain"), site)
        self.deposit: Deposit = draw_deposit(diameter_mm, mpp, seeds.rng(seed, "deposit"))
        self._pool: list[Ink] = []
        self._fill(cells or DrawnCells(mpp, self.stain), abnormal)
        self._set_focus()

    @property
    def size_level0(self) -> tuple[int, int]:
        """Width and height in px."""
        return self.deposit.size_level0

    @property
    def findings(self) -> list[Finding]:
        """The abnormal cells, in the order of placing."""
        found = []
        for item in range(len(self._ink)):
            ink = self._pool[self._ink[item]]
            if ink.outline is not None:
                found.append(Finding(ink.kind, turned_points(ink, int(self._turn[item])) + self._corner[item]))
        return found

    def depths_um(self, xy_level0: tuple[float, float], side_level0: float) -> NDArray[np.float64]:
        """Depths (N,) of the cells whose middle lies in the square from `xy_level0` on; dust left out."""
        n_cells = len(self._depth_um) - self._n_dust
        from_corner = (self._corner + self._size / 2)[:n_cells] - xy_level0
        inside = np.all((from_corner >= 0) & (from_corner < side_level0), axis=1)
        return np.asarray(self._depth_um[:n_cells][inside], np.float64)

    def strips(self, z_um: float = 0.0) -> Iterator[NDArray[np.uint8]]:
        """RGB strips (at most 256, W, 3) from the top down, as seen with the focus at `z_um`."""
        width, height = self.size_level0
        glass = Glass(self.size_level0, self.stain, seeds.rng(self._seed, "glass"))
        sigmas_px = _BLUR_STEP_PX * np.rint(_BLUR_PER_UM * np.abs(self._depth_um - z_um) / self._mpp / _BLUR_STEP_PX)
        pads = np.array([pad_px(sigma) for sigma in sigmas_px])[:, None]
        starts, ends = self._corner - pads, self._corner + self._size + pads
        kept = int(_BLURRED_BYTES / np.mean([ink.density.nbytes for ink in self._pool]))
        density_of = lru_cache(kept)(lambda ink, sigma_px: blurred(self._pool[ink].density, sigma_px))

        def strip(top: int) -> NDArray[np.uint8]:
            rgb = np.empty((min(TILE_PX, height - top), width, 3), np.uint8)
            near = np.flatnonzero((starts[:, 1] < top + TILE_PX) & (ends[:, 1] > top))
            for left in range(0, width, _BLOCK_PX):
                block = rgb[:, left : left + _BLOCK_PX]
                canvas = glass(left, top, block.shape[1], block.shape[0])
                for item in near[(starts[near, 0] < left + _BLOCK_PX) & (ends[near, 0] > left)]:
                    density = turned(density_of(self._ink[item], sigmas_px[item]), self._turn[item])
                    add(canvas, density, int(starts[item, 0]) - left, int(starts[item, 1]) - top)
                light_through(canvas, block)
            return rgb

        return map(strip, range(0, height, TILE_PX))

    def _fill(self, cells: Cells, abnormal: float) -> None:
        """Draws the pool and places everything."""
        rng = seeds.rng(self._seed, "places")
        um = 1 / self._mpp
        count = self.deposit.cells
        grouped = round(count * rng.uniform(0.15, 0.4))
        normal_xy = np.concatenate(
            [self.deposit.draw_xy(count - grouped, rng), self.deposit.draw_groups(grouped, 5, 16 * um, rng)]
        )
        n_other = round(count * float(np.clip(rng.lognormal(-0.3, 0.6), 0.15, 2.5)))
        loose = n_other // 2
        other_xy = np.concatenate(
            [self.deposit.draw_xy(loose, rng), self.deposit.draw_groups(n_other - loose, 4, 12 * um, rng)]
        )
        n_abnormal = max(1, round(abnormal * count)) if abnormal else 0
        paired = round(0.5 * n_abnormal)
        abnormal_xy = np.concatenate(
            [self.deposit.draw_xy(n_abnormal - paired, rng), self.deposit.draw_groups(paired, 3, 18 * um, rng)]
        )
        lesion = _LESIONS[rng.choice(len(_LESIONS), p=(0.5, 0.35, 0.15))]
        self._n_dust = n_dust = int(rng.poisson(0.4 * np.prod(self.size_level0) * self._mpp**2 / 1e6))
        dust_xy = rng.random((n_dust, 2)) * self.size_level0
        inks = [
            self._draw(cells, "normal", _NORMAL, min(count, _POOL), count, rng),
            self._draw(None, "other", _others(), min(n_other, _POOL_OTHER), n_other, rng),
            self._draw(cells, "abnormal", lesion, min(n_abnormal, _POOL_ABNORMAL), n_abnormal, rng),
            self._draw(None, "dust", {"debris": 1.0}, min(n_dust, _POOL_OTHER), n_dust, rng),
        ]
        self._ink = np.concatenate(inks)
        self._turn = rng.integers(0, 8, len(self._ink))
        centre = np.concatenate([normal_xy, other_xy, abnormal_xy, dust_xy])
        size = np.array([ink.density.shape[1::-1] for ink in self._pool])[self._ink]
        self._size = np.where(self._turn[:, None] & 1, size[:, ::-1], size)
        self._corner = np.rint(centre - self._size / 2).astype(np.int64)

    def _draw(
        self, cells: Cells | None, what: str, shares: dict[str, float], drawn: int, used: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Adds `drawn` inks of kinds by `shares` to the pool and says which of them each of `used` things is."""
        known = {kind: share for kind, share in shares.items() if cells is None or kind in cells.kinds}
        share = np.array(list(known.values())) * rng.lognormal(0, 0.3, len(known))
        first = len(self._pool)
        for number in range(drawn):
            own = seeds.rng(self._seed, what, number)
            kind = str(own.choice(list(known), p=share / share.sum()))
            sprite = cells.cell(kind, own) if cells else draw_other(kind, self._mpp, self.stain, own)
            self._pool.append(ink_of(sprite))
        if used > drawn:
            return first + rng.integers(0, drawn, used)
        return np.arange(first, first + used)

    def _set_focus(self) -> None:
        """Gives each thing its depth in µm: a smooth surface over the slide, and a little of its own."""
        rng = seeds.rng(self._seed, "focus")
        place = self._corner / max(self.size_level0)
        surface = np.full(len(place), rng.normal(0, 0.4))
        for _ in range(4):
            frequency, phase = rng.normal(0, 1.2, 2), rng.uniform(0, 1)
            surface += rng.normal(0, 0.5) * np.cos(2 * np.pi * (place @ frequency + phase))
        self._depth_um = np.clip(surface, -1.8, 1.8) + rng.normal(0, 0.3, len(place))
        self._depth_um[len(place) - self._n_dust :] += 6  # on the cover slip


def _others() -> dict[str, float]:
    """Shares of the things that are no cells of interest: mostly neutrophils."""
    return {kind: 1.0 if kind == "neutrophil" else 0.5 / max(1, len(OTHER_KINDS) - 1) for kind in OTHER_KINDS}
