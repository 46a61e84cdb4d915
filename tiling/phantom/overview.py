"""A phantom slide's small picture at 16 µm/px, in pieces: the cells, the glass, and where the deposit truly lies.

It is what deposits are looked for on, and what faults are drawn on.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.tiling.phantom.scene import Scene

UM_PER_PX = 16
_SCENE_MPP = 4.0
_QUALITY = 85  # of the JPEG that a scanner's overview is

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Overview:
    """A slide's small picture at 16 µm/px, in pieces.

    Attributes:
        cells: (H, W, 3) optical densities of what lies on the glass.
        glass: (H, W, 3) optical densities of the glass itself, of lamp, mounting and marks on it.
        truth: (H, W), where the deposit lies.
        scanned: (H, W), where the scanner looked.
        diameter_px: Of the chamber that the deposit settled through.
    """

    cells: Plane
    glass: Plane
    truth: NDArray[np.bool_]
    scanned: NDArray[np.bool_]
    diameter_px: float

    def rgb(self) -> NDArray[np.uint8]:
        """The picture (H, W, 3), after JPEG; white where it was not scanned."""
        light = cv2.exp(-(self.cells + self.glass)) * np.float32(255)
        light[~self.scanned] = 255
        bgr = cv2.convertScaleAbs(cv2.cvtColor(light, cv2.COLOR_RGB2BGR))
        _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        picture = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
        assert picture is not None
        rgb = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
        rgb[~self.scanned] = 255
        return rgb


def overview_of_scene(seed: int, site: str, diameter_mm: float = 13.0) -> Overview:
    """A phantom slide without a fault; its truth is where its density of cells is above zero."""
    scene = Scene(seed, site, diameter_mm, _SCENE_MPP, 0.0)
    shrink = round(UM_PER_PX / _SCENE_MPP)
    fine = np.concatenate(list(scene.strips()))
    size = (fine.shape[1] // shrink, fine.shape[0] // shrink)
    light = cv2.resize(fine.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    glass = np.empty_like(light)
    glass[:] = -np.log(np.array(scene.stain.glass, np.float32) / 255)
    deposit = scene.deposit
    scale = deposit.diameter_level0 / shrink / deposit.density.shape[0]
    corner = (np.array(deposit.centre_level0) - deposit.diameter_level0 / 2) / shrink
    # OpenCV counts from the centre of the first pixel, the deposit from its corner.
    x, y = corner + (scale - 1) / 2
    placed = np.array([[scale, 0, x], [0, scale, y]])
    truth = cv2.warpAffine((deposit.density > 0).astype(np.float32), placed, size) > 0.5
    cells = np.asarray(-np.log((light + 0.5) / 255) - glass, np.float32)
    slope = _plane_through(cells, ~cv2.dilate(truth.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool))
    return Overview(cells - slope, glass + slope, truth, np.ones(truth.shape, bool), deposit.diameter_level0 / shrink)


def _plane_through(density: Plane, where: NDArray[np.bool_]) -> Plane:
    """The tilted plane (H, W, 3) that fits `density` best in the places `where` (H, W): the lamp's slope."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, side) for side in where.shape), indexing="ij")
    terms = np.stack([np.ones_like(rows), rows, columns], -1)
    weights, *_ = np.linalg.lstsq(terms[where], density[where], rcond=None)
    return np.asarray(terms @ weights, np.float32)
