"""What is cut out of a slide: which tiles, by which settings, and the tiles themselves in grid order.

    open_slide → overview → deposit → grid → tiles

Shards, feature bags and diagnoses are all made of exactly these tiles.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from papsmear.errors import InputError, UsageError
from papsmear.tiling.deposit import Area, Deposit, find_deposit, overview_of
from papsmear.tiling.grid import grid, tiles_in
from papsmear.tiling.reader import FINEST_MPP, SlideReader
from papsmear.tiling.shards import Tile


@dataclass(frozen=True)
class TileSettings:
    """What decides the tiles of a slide: `size_px` a side at `mpp` µm/px, in `area`, as JPEG of `quality`."""

    area: Area = "disc"
    size_px: int = 320
    mpp: float = 0.5
    quality: int = 90

    def __post_init__(self) -> None:
        if not 32 <= self.size_px <= 4096:
            raise UsageError(f"tiles of {self.size_px} px (size_px) cannot be made; 32 to 4096 can")
        if not FINEST_MPP <= self.mpp <= 64:
            raise UsageError(f"tiles at {self.mpp:g} µm/px (tile_mpp) cannot be made; {FINEST_MPP:g} to 64 can")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"JPEG quality {self.quality} cannot be had; 1 to 100 can, 90 is usual")


@dataclass(frozen=True)
class Plan:
    """Which tiles of a slide will be made: corners (N, 2) and side, in level-0 pixels, in grid order."""

    deposit: Deposit
    xy_level0: NDArray[np.int64]
    size_level0: float
    n_grid: int  # tiles that would cover the whole slide
    overview: NDArray[np.uint8]  # (H, W, 3)
    level0_px_per_px: float  # of the overview


def plan(reader: SlideReader, settings: TileSettings) -> Plan:
    """Finds the deposit and lays the grid. InputError where there is no deposit, or no tile fits in it."""
    reader.level_for(settings.mpp)
    step_level0 = settings.size_px * settings.mpp / reader.mpp
    overview, level0_px_per_px = overview_of(reader)
    deposit = find_deposit(reader, settings.area, overview, level0_px_per_px)
    everywhere = grid(reader.size_level0, step_level0)
    xy_level0 = tiles_in(deposit, everywhere, step_level0)
    if len(xy_level0) == 0:
        raise InputError(
            f"{reader.path}: no tile of {settings.size_px} px at {settings.mpp:g} µm/px fits (the slide has"
            f" {reader.size_level0[0]} x {reader.size_level0[1]} px at {reader.mpp:g}); use a smaller --size_px"
        )
    return Plan(deposit, xy_level0, round(step_level0, 3), len(everywhere), overview, level0_px_per_px)


def iter_tiles(reader: SlideReader, settings: TileSettings, plan: Plan) -> Iterator[Tile]:
    """Reads the planned tiles in grid order, JPEG bytes and all; what goes into the shards is exactly this."""
    for x, y in plan.xy_level0.tolist():
        rgb = reader.read((x, y), settings.size_px, settings.mpp)
        jpeg = simplejpeg.encode_jpeg(rgb, settings.quality, colorsubsampling="420")
        yield Tile((x, y), plan.size_level0, settings.size_px, settings.mpp, 0.0, focus_score(rgb), jpeg)


def focus_score(rgb: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of the grey picture (H, W, 3): high where it is sharp (Pech-Pacheco et al. 2000)."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return round(float(cv2.Laplacian(grey, cv2.CV_16S).var()), 3)
