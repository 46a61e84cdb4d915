"""Where the nucleus of each cell is, from the masks of the set: the centre of its patch, and the patch's side.

Where all images are of one size, the set was resized and its scale is lost; a patch is then as wide as the disc of the
cell's area, cytoplasm and nucleus, in place of 128 native pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from papsmear.errors import UsageError
from papsmear.probes.datasets import CellSet, read_rgb
from papsmear.probes.deeppap import PATCH_PX
from papsmear.tiling.phantom.masks import Mask, parts_of


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
    parts = parts_of(rgb)
    nucleus = _centroid(parts.nucleus)
    if nucleus is None:
        raise ValueError("its mask shows no nucleus")
    cell_area = int(parts.cell.sum())
    return Nucleus(nucleus, float(np.sqrt(4 * cell_area / np.pi)) if relative else float(PATCH_PX))


def _centroid(inside: Mask) -> tuple[float, float] | None:
    """Centroid x, y of the largest piece of a mask (H, W)."""
    count, _, stats, centroids = cv2.connectedComponentsWithStats(inside.astype(np.uint8))
    if count < 2:
        return None
    x, y = centroids[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())].tolist()
    return x, y
