"""Single cells ready to be pasted: at the canvas's µm/px, with their side as label and, where a set has them, masks.

A copy of Herlev whose pictures were all made equally large has lost its scale. There each cell is brought to the
typical size of its class by the area of its mask, and what the copy added around the picture is cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.errors import InputError, UsageError
from papsmear.probes.classes import SETS, CellClass
from papsmear.probes.datasets import CellSet, masks_of
from papsmear.probes.masks import read_parts
from papsmear.probes.scale import check_scale
from papsmear.probes.sources import MaskFile
from papsmear.tiling.phantom.cutouts import TYPICAL_UM
from papsmear.tiling.phantom.masks import Mask

Pixel = TypeVar("Pixel", np.uint8, np.float32)

SIDES = {"positive": 1, "negative": 0}  # the label of a cell's side; what is on neither is not pasted
_FLAT = 12  # grey levels: a row or column that a copy added varies less, by its JPEG only


@dataclass(frozen=True)
class LabelledCell:
    """A cell's picture (H, W, 3) at the canvas's µm/px, its label (1: positive), and its mask (H, W), `inside`."""

    name: str
    image: NDArray[np.uint8]
    label: int
    inside: Mask | None = None


@dataclass(frozen=True)
class LabelledCells:
    """The pasteable cells of a set: whether they have masks, and whether their scale had to be told by their class."""

    cells: tuple[LabelledCell, ...]
    masked: bool
    scaled_by_class: bool


def labelled_cells(cells: CellSet, mpp: float, masked: bool) -> LabelledCells:
    """The positive and negative cells of a set, brought to `mpp` µm/px; with `masked`, in their masks if it has any.

    Raises UsageError where the µm/px of a cell are not known, and where the set has masks, but not for this cell.
    """
    masked = masked and any(cells.masks)
    lost = _has_lost_its_scale(cells)
    if not lost:
        check_scale(cells, f"--cells.{cells.name}", otherwise="")
    files = masks_of(cells) if masked or lost else (None,) * len(cells.paths)
    found = []
    for path, image, number, file, cell_mpp in zip(
        cells.paths, cells.images, cells.labels, files, cells.mpp or (None,) * len(files), strict=True
    ):
        cell_class = cells.classes[number]
        if cell_class.side not in SIDES:
            continue
        inside = None if file is None else _inside(file, path, image)
        if lost and inside is not None:
            scale = _typical_um(cell_class) / mpp / (2 * np.sqrt(inside.sum() / np.pi))
            image, inside = _without_padding(image, inside)
        else:
            scale = (cell_mpp or mpp) / mpp
        mask = _resized(inside.astype(np.float32), scale) >= 0.5 if inside is not None and masked else None
        found.append(LabelledCell(path, _resized(image, scale), SIDES[cell_class.side], mask))
    return LabelledCells(tuple(found), masked, lost)


def by_side(cells: Sequence[LabelledCell], label: int) -> list[LabelledCell]:
    """The cells of one label."""
    return [cell for cell in cells if cell.label == label]


def _has_lost_its_scale(cells: CellSet) -> bool:
    """Whether it is a copy of a public set with µm/px whose pictures were all made equally large."""
    public = SETS.get(cells.name)
    return public is not None and public.mpp is not None and not any(cells.mpp)


def _inside(mask: MaskFile, path: str, image: NDArray[np.uint8]) -> Mask:
    try:
        return read_parts(mask, image.shape[:2]).cell
    except InputError as error:
        raise UsageError(f"{path}: its mask {error}; mend it") from error


@cache
def _typical_um(cell_class: CellClass) -> float:
    """Diameter in µm of a disc of a typical cell's area. UsageError for a class of which none is known."""
    for kind, um in TYPICAL_UM.items():
        if cell_class.is_called(kind):
            return um
    raise UsageError(
        f"all pictures of {cell_class.name} have one size: their scale is lost; give the set's own archive"
    )


def _without_padding(image: NDArray[np.uint8], inside: Mask) -> tuple[NDArray[np.uint8], Mask]:
    """Picture and mask without the flat rows and columns at the border."""
    rows, columns = (np.flatnonzero(np.ptp(image, axis=axis).max(-1) >= _FLAT) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return image, inside
    cut = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return image[cut], inside[cut]


def _resized(picture: NDArray[Pixel], scale: float) -> NDArray[Pixel]:
    """A picture of `scale` times the size: each pixel the mean of what it covers, or cubic where it grows."""
    size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC))
