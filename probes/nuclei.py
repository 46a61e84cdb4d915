"""Where the nucleus of each cell is, from the masks of the set: the centre of its patch, and the patch's side.

Herlev masks are pictures in four colours; in JPEG copies they blur, so a pixel belongs to the nearest colour. Where all
images are of one size, the set was resized and its scale is lost; a patch is then as wide as the disc of the cell's
area, cytoplasm and nucleus, in place of 128 native pixels.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.errors import UsageError
from papsmear.probes.datasets import CellSet, read_rgb
from papsmear.probes.deeppap import PATCH_PX

_CYTOPLASM, _NUCLEUS = 0, 1
_COLOURS = np.array([(0, 0, 128), (0, 0, 255), (255, 0, 0), (128, 128, 128), (0, 0, 0)])  # then ground, unknown, none


@dataclass(frozen=True)
class Nucleus:
    """Centroid of a nucleus in its image (0 is the first pixel's centre), and the side of the patch round it, px."""

    xy_px: tuple[float, float]
    patch_px: float


def read_nuclei(cells: CellSet) -> tuple[list[Nucleus | None], dict[str, str]]:
    """The nucleus of each cell, None where there is none; and why, by the cell's path.

    Raises UsageError where no cell has a mask.
    """
    nuclei: list[Nucleus | None] = []
    problems: dict[str, str] = {}
    relative = without_scale(cells)
    masks = cells.masks or (None,) * len(cells.paths)
    for path, image, mask in zip(cells.paths, cells.images, masks, strict=True):
        try:
            nuclei.append(_nucleus(mask, image.shape[:2], relative))
        except (ValueError, OSError, SyntaxError) as error:
            nuclei.append(None)
            problems[path] = " ".join(str(error).split())
    if not any(nuclei):
        first, reason = next(iter(problems.items()))
        raise UsageError(
            f"{cells.title}: no cell has a mask that shows its nucleus ({first}: {reason}); "
            "patches are cut round the nucleus, so give a set with its masks"
        )
    return nuclei, problems


def without_scale(cells: CellSet) -> bool:
    """Whether all images have one size: a copy whose cells were resized, in which a pixel has no length."""
    return len({image.shape for image in cells.images}) == 1


def _nucleus(mask: Path | None, shape: tuple[int, ...], relative: bool) -> Nucleus:
    """ValueError where the mask does not show it."""
    if mask is None:
        raise ValueError("no mask")
    rgb = read_rgb(mask)
    if rgb.shape[:2] != shape:
        raise ValueError(f"its mask is {rgb.shape[1]}x{rgb.shape[0]} px, the image {shape[1]}x{shape[0]}")
    red, green, blue = (rgb[:, :, channel] >> 3 for channel in range(3))
    part = _nearest_colour()[red, green, blue]  # (H, W)
    nucleus, _ = _largest(part == _NUCLEUS)
    if nucleus is None:
        raise ValueError("its mask shows no nucleus")
    _, cell_area = _largest((part == _NUCLEUS) | (part == _CYTOPLASM))
    return Nucleus(nucleus, float(np.sqrt(4 * cell_area / np.pi)) if relative else float(PATCH_PX))


@lru_cache(maxsize=1)
def _nearest_colour() -> NDArray[np.int64]:
    """(32, 32, 32): for each colour, in steps of 8, the number of the mask colour nearest to it."""
    axis = 8 * np.arange(32) + 3.5
    colours = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    return np.asarray(((colours[..., None, :] - _COLOURS) ** 2).sum(axis=-1).argmin(axis=-1))


def _largest(inside: NDArray[np.bool_]) -> tuple[tuple[float, float] | None, int]:
    """Centroid x, y and area of the largest piece of a mask (H, W)."""
    count, _, stats, centroids = cv2.connectedComponentsWithStats(inside.astype(np.uint8))
    if count < 2:
        return None, 0
    index = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    x, y = centroids[index].tolist()
    return (x, y), int(stats[index, cv2.CC_STAT_AREA])
