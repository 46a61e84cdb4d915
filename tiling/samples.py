"""The pictures of annotated cells: which are cut out of a slide, and where they lie.

A cell gives a crop, a square around its box, lossless. A positive cell also gives a tile around it, as JPEG of the
quality that the shards have: negative tiles come out of the shards as they are, and what learns from both must not be
able to tell them by their compression.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.cohort import Slide
from papsmear.errors import InputError, UsageError
from papsmear.tiling.annotations import Box, Problem, Shape, class_of, plain_names, read_annotations
from papsmear.tiling.cut import TileSettings
from papsmear.tiling.picture import focus_score, ycbcr_from_rgb
from papsmear.tiling.planes import Planes, open_planes
from papsmear.tiling.reader import SlideReader

Side = Literal["positive", "negative", "ignore"]
OnProblem = Literal["skip", "refuse"]

COLUMNS = ("file", "slide_id", "fold", "class", "label", "x_level0", "y_level0", "size_level0", "size_px", "mpp")


@dataclass(frozen=True)
class CropSettings:
    """What decides the labelled sets; the options of `crop`."""

    classes: dict[str, Side]
    size_px: int
    mpp: float
    quality: int
    margin_um: float
    point_um: float
    on_problem: OnProblem
    seed: int
    upsample: bool

    def __post_init__(self) -> None:
        TileSettings("all", self.size_px, self.mpp, self.quality)  # checks these
        if not 0 <= self.margin_um <= self.tile_um:
            raise UsageError(f"--margin_um={self.margin_um:g} is not from 0 to a tile's {self.tile_um:g} µm")
        if not 0 < self.point_um <= self.tile_um:
            raise UsageError(f"--point_um={self.point_um:g} is not above 0, up to a tile's {self.tile_um:g} µm")
        if again := sorted(set(self.classes) - set(plain_names(self.classes).values())):
            raise UsageError(f"--classes: {', '.join(again)} stands there in another spelling too; keep one of them")
        if "positive" not in self.classes.values():
            raise UsageError("--classes: none of them is positive; take -c configs/crop.yaml, or name one")

    @property
    def tile_um(self) -> float:
        """Side of a tile."""
        return self.size_px * self.mpp


@dataclass(frozen=True)
class Picture:
    """One picture of a set. `file` counts from the output folder; `xy_level0` is its top left."""

    file: str
    slide_id: str
    fold: int | None
    class_name: str
    label: int
    xy_level0: tuple[int, int]
    size_level0: float
    size_px: int
    mpp: float

    def row(self) -> dict[str, str | int | float | None]:
        """Its row in cells.csv or tiles.csv; a slide without a fold has none there."""
        values = (
            self.file, self.slide_id, self.fold, self.class_name, self.label, *self.xy_level0, self.size_level0,
            self.size_px, self.mpp,
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))


@dataclass(frozen=True)
class SlidePlan:
    """What will be cut out of one slide, in the order of its annotations, and what will not."""

    cells: tuple[Picture, ...]
    tiles: tuple[Picture, ...]
    problems: tuple[Problem, ...]
    ignored: int


def plan_slide(job: tuple[Slide, Path], settings: CropSettings) -> SlidePlan | str:
    """The pictures for a slide and its annotation file; or why the slide cannot be read."""
    slide, file = job
    shapes, problems = read_annotations(file)
    if not shapes:  # such as a negative slide's: it need not be opened
        return SlidePlan((), (), tuple(problems), 0)
    try:
        with open_planes(slide.path, slide.z_planes, slide.mpp) as planes:
            if not settings.upsample:
                planes.middle.check_mpp(settings.mpp)
            found = list(_placed(shapes, slide, planes.middle, settings))
    except InputError as error:
        return " ".join(str(error).split())
    problems += [item for item in found if isinstance(item, Problem)]
    pairs = [item for item in found if isinstance(item, tuple)]
    cells = _named_apart([cell for cell, _ in pairs])
    tiles = _named_apart([tile for _, tile in pairs if tile.label])
    return SlidePlan(cells, tiles, tuple(problems), sum(item is None for item in found))


def _placed(
    shapes: list[Shape], slide: Slide, reader: SlideReader, settings: CropSettings
) -> Iterator[tuple[Picture, Picture] | Problem | None]:
    """For each shape its crop and its tile, or why it gets none; None for a class that is ignored."""
    feature_at: dict[Box, str] = {}
    longest_level0 = settings.tile_um / reader.mpp
    width, height = reader.size_level0
    for shape in shapes:
        name = class_of(shape.classification, settings.classes)
        left, top, right, bottom = box = _around_cell(shape.box_level0, settings.point_um / reader.mpp)
        if name is None:
            yield Problem(shape.feature, "unknown class", ": ".join(shape.classification))
        elif settings.classes[name] == "ignore":
            yield None
        elif settings.classes[name] == "positive" and slide.label == 0:
            yield Problem(shape.feature, "positive cell on a negative slide", "label 0 in slides.csv")
        elif not (0 <= (left + right) / 2 < width and 0 <= (top + bottom) / 2 < height):
            yield Problem(shape.feature, "outside the slide", f"which has {width} x {height} px")
        elif max(right - left, bottom - top) > longest_level0:
            yield Problem(shape.feature, "larger than a tile", f"which has {settings.tile_um:g} µm")
        elif box in feature_at:
            yield Problem(shape.feature, "drawn twice", f"also by {feature_at[box]}")
        else:
            feature_at[box] = shape.feature
            yield _pictures(box, name, slide, reader, settings)


def _around_cell(box: Box, point_level0: float) -> Box:
    """The box itself, or that of the cell which a point stands for."""
    left, top, right, bottom = box
    if (left, top) != (right, bottom):
        return box
    half = point_level0 / 2
    return left - half, top - half, right + half, bottom + half


def _pictures(
    box: Box, name: str, slide: Slide, reader: SlideReader, settings: CropSettings
) -> tuple[Picture, Picture]:
    """The crop and the tile of a cell. Both have it in their middle, but the tile is kept on the slide."""
    left, top, right, bottom = box
    crop_um = max(right - left, bottom - top) * reader.mpp + 2 * settings.margin_um
    label = int(settings.classes[name] == "positive")
    level0_px_per_px = settings.mpp / reader.mpp

    def picture(folder: str, suffix: str, xy_level0: tuple[int, int], size_px: int) -> Picture:
        file = f"{folder}/{slide.slide_id}_x{xy_level0[0]}_y{xy_level0[1]}{suffix}"
        size_level0 = round(size_px * level0_px_per_px, 3)
        return Picture(file, slide.slide_id, slide.fold, name, label, xy_level0, size_level0, size_px, settings.mpp)

    crop_px, tile_px = math.ceil(crop_um / settings.mpp - 1e-6), settings.size_px
    crop_xy, tile_xy = (_corner(box, size_px * level0_px_per_px) for size_px in (crop_px, tile_px))
    tile_xy = _on_slide(tile_xy, tile_px * level0_px_per_px, reader.size_level0)
    return (
        picture(f"cells/{_folder(name)}", ".png", crop_xy, crop_px),
        picture("tiles/positive", ".jpg", tile_xy, tile_px),
    )


def _corner(box: Box, side_level0: float) -> tuple[int, int]:
    """Top left, a whole pixel, of the square whose middle is the box's."""
    left, top, right, bottom = box
    x, y = (math.floor((low + high - side_level0) / 2 + 0.5) for low, high in ((left, right), (top, bottom)))
    return x, y


def _on_slide(xy_level0: tuple[int, int], side_level0: float, size_level0: tuple[int, int]) -> tuple[int, int]:
    """Moved onto the slide; at its left or top edge where the slide is smaller than the square."""
    x, y = (
        max(0, min(at, math.floor(size - side_level0 + 1e-6))) for at, size in zip(xy_level0, size_level0, strict=True)
    )
    return x, y


def _folder(name: str) -> str:
    """A class's name as a folder's."""
    return re.sub(r"[^\w-]+", "_", name).strip("_") or "class"


def _named_apart(pictures: list[Picture]) -> tuple[Picture, ...]:
    """The pictures, those of one place and name with _2, _3 and so on: cells may share a tile at the slide's edge."""
    seen: Counter[str] = Counter()
    named = []
    for picture in pictures:
        seen[picture.file] += 1
        stem, _, suffix = picture.file.rpartition(".")
        again = seen[picture.file]
        named.append(picture if again == 1 else replace(picture, file=f"{stem}_{again}.{suffix}"))
    return tuple(named)


def cut_slide(job: tuple[Slide, SlidePlan], folder: Path, settings: CropSettings) -> str | None:
    """Writes a slide's pictures into `folder`; or says why the slide cannot be read, and leaves none of them.

    Of several focal planes each picture is of the one that is sharpest there, as tiles are.
    """
    slide, plan = job
    pictures = (*plan.cells, *plan.tiles)
    try:
        with open_planes(slide.path, slide.z_planes, slide.mpp) as planes:
            for picture in pictures:
                rgb = _sharpest(planes, picture)
                (folder / picture.file).write_bytes(_encoded(rgb, Path(picture.file).suffix, settings.quality))
    except InputError as error:
        for picture in pictures:
            (folder / picture.file).unlink(missing_ok=True)
        return " ".join(str(error).split())
    return None


def _sharpest(planes: Planes, picture: Picture) -> NDArray[np.uint8]:
    found = [reader.read(picture.xy_level0, picture.size_px, picture.mpp) for reader in planes.readers]
    focus = [focus_score(ycbcr_from_rgb(rgb).y) for rgb in found]
    return found[int(planes.best(np.array(focus)[:, None])[0])]


def _encoded(rgb: NDArray[np.uint8], suffix: str, quality: int) -> bytes:
    if suffix == ".png":
        return cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    return ycbcr_from_rgb(rgb).jpeg(quality)  # as the shards' tiles
