"""Where the nucleus of each cell is, from the masks of the set: the centre of its patch, and the patch's side.

Where all images are of one size, the set was resized and its scale is lost; a patch is then as wide as the disc of the
cell's area, cytoplasm and nucleus, in place of 128 native pixels.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from papsmear.errors import InputError, UsageError
from papsmear.probes.datasets import CellSet
from papsmear.probes.deeppap import PATCH_PX
from papsmear.probes.masks import read_parts_and_nucleus
from papsmear.probes.sources import MaskFile
from papsmear.tiling.phantom.masks import Mask


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
        except InputError as error:
            nuclei.append(None)
            problems[path] = str(error)
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


def _nucleus(mask: MaskFile | None, size: tuple[int, ...], relative: bool) -> Nucleus:
    """InputError where the mask does not show it."""
    if mask is None:
        raise InputError("no mask")
    try:
        parts = read_parts_and_nucleus(mask, size)
    except InputError as error:
        raise InputError(f"its mask {error}") from error
    cell_area = int(parts.cell.sum())
    return Nucleus(_centroid(parts.nucleus), float(np.sqrt(4 * cell_area / np.pi)) if relative else float(PATCH_PX))


def _centroid(inside: Mask) -> tuple[float, float]:
    """Centroid x, y of the largest piece of a mask (H, W)."""
    _, _, stats, centroids = cv2.connectedComponentsWithStats(inside.astype(np.uint8))
    x, y = centroids[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())].tolist()
    return x, y
