"""What is cut out of a slide: which tiles, by which settings, and the tiles themselves in grid order.

    open_planes → overview → deposit → grid → tiles

Shards, feature bags and diagnoses are all made of exactly these tiles.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from papsmear.errors import InputError, UsageError
from papsmear.tiling.coverage import stained_mask
from papsmear.tiling.deposit import Area, Deposit, find_deposit, overview_of
from papsmear.tiling.grid import Inside, grid, tiles_in
from papsmear.tiling.picture import content_score, focus_score, ycbcr_from_rgb
from papsmear.tiling.planes import Focus, Planes
from papsmear.tiling.reader import FINEST_MPP, Engine, SlideReader
from papsmear.tiling.shards import Tile


@dataclass(frozen=True)
class TileSettings:
    """What decides the tiles of a slide: `size_px` a side at `mpp` µm/px, in `area`, as JPEG of `quality`.

    Attributes:
        inside: What of a tile must lie in the area: its centre, or the whole square.
        z: The focal plane: the sharpest for each tile, all of them, or the one at so many µm.
        upsample: Whether slides coarser than `mpp` are enlarged rather than refused.
        reader: How slides are read.
        min_focus: Tiles of a lower focus score are left out.
        min_content: Tiles of a lower cell-content score are left out.
    """

    area: Area = "disc"
    size_px: int = 320
    mpp: float = 0.5
    quality: int = 90
    inside: Inside = "centre"
    z: Focus = "best"
    upsample: bool = False
    reader: Engine = "auto"
    min_focus: float = 0
    min_content: float = 0

    def __post_init__(self) -> None:
        if not 32 <= self.size_px <= 4096:
            raise UsageError(f"tiles of {self.size_px} px (size_px) cannot be made; 32 to 4096 can")
        if not FINEST_MPP <= self.mpp <= 64:
            raise UsageError(f"tiles at {self.mpp:g} µm/px (tile_mpp) cannot be made; {FINEST_MPP:g} to 64 can")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"JPEG quality {self.quality} cannot be had; 1 to 100 can, 90 is usual")
        if not self.min_focus >= 0:
            raise UsageError(f"a focus score of {self.min_focus:g} (min_focus) is not from 0 on; 0 keeps all tiles")
        if not 0 <= self.min_content <= 1:
            raise UsageError(f"a cell-content score of {self.min_content:g} (min_content) is not a share from 0 to 1")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The settings that a slide.json or a card tells of; what it does not tell has its default."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


@dataclass(frozen=True)
class Plan:
    """Which tiles of a slide will be made: corners (N, 2) and side, in level-0 pixels, in grid order."""

    deposit: Deposit
    xy_level0: NDArray[np.int64]
    size_level0: float
    n_grid: int  # tiles that would cover the whole slide
    overview: NDArray[np.uint8]  # (H, W, 3)
    level0_px_per_px: float  # of the overview
    glass: tuple[int, int, int]  # Y, Cb and Cr of the glass where nothing lies on it


def plan(reader: SlideReader, settings: TileSettings) -> Plan:
    """Finds the deposit and lays the grid. InputError where there is no deposit, or no tile fits in it."""
    if not settings.upsample:
        reader.check_mpp(settings.mpp)
    step_level0 = settings.size_px * settings.mpp / reader.mpp
    overview, level0_px_per_px = overview_of(reader)
    deposit = find_deposit(reader, settings.area, overview, level0_px_per_px)
    everywhere = grid(reader.size_level0, step_level0)
    xy_level0 = tiles_in(deposit, everywhere, step_level0, settings.inside)
    if len(xy_level0) == 0:
        raise InputError(
            f"{reader.path}: no tile of {settings.size_px} px at {settings.mpp:g} µm/px fits (the slide has"
            f" {reader.size_level0[0]} x {reader.size_level0[1]} px at {reader.mpp:g}); use a smaller --size_px"
        )
    glass = _glass(overview, level0_px_per_px * reader.mpp)
    return Plan(deposit, xy_level0, round(step_level0, 3), len(everywhere), overview, level0_px_per_px, glass)


def _glass(overview: NDArray[np.uint8], um_per_px: float) -> tuple[int, int, int]:
    """Y, Cb and Cr of the clean glass; white where all of the slide is covered."""
    small = np.ascontiguousarray(overview[::4, ::4])
    clean = small[~stained_mask(small, 4 * um_per_px) & (small[..., 2] < 255)]
    colour = np.median(clean, axis=0) if len(clean) else np.full(3, 255)
    y, cb, cr = (int(channel[0, 0]) for channel in ycbcr_from_rgb(colour.astype(np.uint8).reshape(1, 1, 3)))
    return y, cb, cr


def iter_tiles(
    planes: Planes, settings: TileSettings, plan: Plan, dropped: Counter[str] | None = None
) -> Iterator[Tile]:
    """Reads the planned tiles in grid order, JPEG bytes and all; what goes into the shards is exactly this.

    `dropped` counts the tiles that `min_focus` and `min_content` leave out. InputError where the slide is damaged.
    """
    planes = planes.select(settings.z)
    streams = [reader.tiles(plan.xy_level0, settings.size_px, settings.mpp) for reader in planes.readers]
    keep_all = settings.z == "all" and len(streams) > 1
    for (x, y), *pictures in zip(plan.xy_level0.tolist(), *streams, strict=True):
        focus = [round(focus_score(picture.y), 3) for picture in pictures]
        for index in range(len(pictures)) if keep_all else _sharpest(planes, focus):
            content = round(content_score(pictures[index], plan.glass), 4)
            if reason := _lacking(focus[index], content, settings):
                if dropped is not None:
                    dropped[reason] += 1
                continue
            yield Tile(
                xy_level0=(x, y),
                size_level0=plan.size_level0,
                size_px=settings.size_px,
                mpp=settings.mpp,
                z=planes.z_um[index],
                focus=focus[index],
                content=content,
                jpeg=pictures[index].jpeg(settings.quality),
                z_index=index if keep_all else None,
            )


def _sharpest(planes: Planes, focus: list[float]) -> tuple[int]:
    return (0 if len(focus) == 1 else int(planes.best(np.array(focus)[:, None])[0]),)


def _lacking(focus: float, content: float, settings: TileSettings) -> Literal["focus", "content", ""]:
    if focus < settings.min_focus:
        return "focus"
    return "content" if content < settings.min_content else ""
