"""A cell's outlines as SIPaKMeD has them (Plissiti et al., ICIP 2018): polygons of the whole cell and of its nucleus.

A file of text each, one point `x,y` a line in px of the cell's picture, not in whole numbers; the last point joins the
first. The cell's outline goes round its nucleus too. 0 is taken for the first pixel's centre.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.measure import points_in_poly

from papsmear.errors import InputError
from papsmear.tiling.phantom.masks import Mask, Parts, largest_piece

_FARTHEST_PX = 1e6  # of a point; a larger number is a slip
_SHIFT = 4  # OpenCV's points are in sixteenths of a pixel
_NEAR_PX = 3  # width of a line that covers every pixel near the outline, though its points are rounded
_SHOWN = 40  # characters of a line that is no point


@dataclass(frozen=True)
class Outlines:
    """The files of a cell's outlines; `nucleus` is None where there is none of it."""

    cell: Path
    nucleus: Path | None

    def parts(self, size: tuple[int, int]) -> Parts:
        """The parts of the cell in its picture of `size` (H, W). InputError where an outline shows none of it."""
        cell = largest_piece(_inside(self.cell, size))
        nucleus = np.zeros_like(cell) if self.nucleus is None else _inside(self.nucleus, size) & cell
        return Parts(~cell, cell, nucleus)


def read_outline(file: Path) -> NDArray[np.float64]:
    """The points (P, 2) x, y of an outline. InputError, with the file's name and the line, where it is none."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{file.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file.name} is not text") from error
    points = [_point(file, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len({*points}) < 3:
        has = f"has {len({*points})} different points" if points else "is empty"
        raise InputError(f"{file.name} {has}; an outline has 3 or more")
    return np.array(points)


def _point(file: Path, number: int, line: str) -> tuple[float, float]:
    """Of `x,y`; a space or tab may stand for the comma or beside it."""
    try:
        x, y = map(float, re.split(r"\s*,\s*|\s+", line.strip()))
    except ValueError:
        x = y = np.nan
    if not (abs(x) < _FARTHEST_PX and abs(y) < _FARTHEST_PX):  # so NaN is refused too
        shown = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
        raise InputError(f"{file.name}, line {number}: {shown!r} is not a point 'x,y' in px")
    return x, y


def _inside(file: Path, size: tuple[int, int]) -> Mask:
    """(H, W): the pixels whose centre lies in the outline or on it.

    A piece of the picture that the outline does not cross is inside or outside as a whole, so one pixel of it is asked,
    and all near the outline; to ask every pixel takes several times as long.
    """
    points = read_outline(file)
    rounded = [np.rint(points).astype(np.int32)]
    near = cv2.polylines(np.zeros(size, np.uint8), rounded, True, 1, _NEAR_PX)
    count, piece = cv2.connectedComponents(1 - near, connectivity=4)
    asked = np.zeros(count, np.int64)
    asked[piece.ravel()] = np.arange(piece.size)  # a pixel of each piece; all near the outline are of piece 0
    inside: Mask = _holds(points, asked, size)[piece]
    inside[near > 0] = _holds(points, np.flatnonzero(near), size)
    if not inside.any():
        raise InputError(f"{file.name} holds no pixel of its picture, {size[1]} x {size[0]} px")
    return inside


def _holds(points: NDArray[np.float64], pixels: NDArray[np.int64], size: tuple[int, int]) -> Mask:
    """Whether a polygon (P, 2) holds the centres of pixels (N,), counted through a picture (H, W): (N,)."""
    y, x = np.unravel_index(pixels, size)
    return np.asarray(points_in_poly(np.stack([x, y], 1), points), np.bool_)
