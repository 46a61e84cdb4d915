"""What a mask shows: glass, the cell, its nucleus; and how the masks of the Herlev set, which are pictures, are read.

Masks are pictures in four colours. In JPEG copies these blur, so a pixel belongs to the colour nearest to it.
"""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]  # (H, W)

_GLASS, _CYTOPLASM, _NUCLEUS, _UNKNOWN = range(4)
_COLOURS = np.array(
    [(255, 0, 0), (0, 0, 128), (0, 0, 255), (128, 128, 128), (0, 0, 0)], np.float32
)  # glass, cytoplasm, nucleus, unknown, outside


class Parts(NamedTuple):
    """Of a mask (H, W) each: glass or unknown; the cell, its largest piece; the nucleus of that."""

    around: Mask
    cell: Mask
    nucleus: Mask


def parts_of(mask: NDArray[np.uint8]) -> Parts:
    """The parts that a mask's picture (H, W, 3) RGB shows; the cell is empty where there is none."""
    red, green, blue = (mask[:, :, channel] >> 3 for channel in range(3))
    nearest = _nearest_colour()[red, green, blue]
    nucleus = nearest == _NUCLEUS
    cell = largest_piece(nucleus | (nearest == _CYTOPLASM))
    return Parts((nearest == _GLASS) | (nearest == _UNKNOWN), cell, nucleus & cell)


def largest_piece(inside: Mask) -> Mask:
    """The largest connected piece of a mask (H, W), empty where that is empty."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8))
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()) if count > 1 else 1
    return np.asarray(pieces == largest)


@lru_cache(maxsize=1)
def _nearest_colour() -> NDArray[np.int64]:
    """(32, 32, 32): for each colour, in steps of 8, the number of the mask colour nearest to it."""
    axis = np.arange(32, dtype=np.float32) * 8 + 3.5
    colours = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    return np.asarray(((colours[..., None, :] - _COLOURS) ** 2).sum(-1).argmin(-1))
