"""Patches round the nucleus, as DeepPap trains and tests on them (Zhang et al., JBHI 2017).

A patch of 128 px is moved, turned, enlarged to 256 px, cropped to 227 px and mirrored. All of this is one affine map,
so a view is cut from the image by one interpolation; outside the image it is 0. Encoders that take another size than
227 px get the same crop at theirs.

Frames: `patch px` are 128 to the patch's side, whatever that is in the image; `crop px` 256.
Shapes: M views, S their side in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.probes.deeppap import CROP_PX, PATCH_PX, TRANSLATION_PX, UPSAMPLED_PX, DeepPap
from papsmear.probes.knn import Ints
from papsmear.probes.nuclei import Nucleus
from papsmear.seeds import rng

Floats64 = NDArray[np.float64]
_MARGIN_PX = UPSAMPLED_PX - CROP_PX


@dataclass(frozen=True)
class Views:
    """M views: whose (`cell`, an index), turned by `angle` degrees, moved by `shift` patch px (M, 2), cropped from
    `corner` crop px on (M, 2), and `mirrored` left to right.
    """

    cell: Ints
    angle: Floats64
    shift: Floats64
    corner: Floats64
    mirrored: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.cell)

    def matrix(self, row: int, nucleus: Nucleus, side_px: int) -> Floats64:
        """The map (2, 3) from pixels x, y, 1 of the view to those of the cell's image; 0 is the first pixel's centre.

        From right to left: mirror, crop, shrink to patch px, centre, turn, move, scale and move to the nucleus.
        """
        step = CROP_PX / side_px * PATCH_PX / UPSAMPLED_PX  # patch px for a pixel of the view
        corner = self.corner[row] * PATCH_PX / UPSAMPLED_PX - PATCH_PX / 2  # of the crop, from the patch's centre
        flip = np.array([[-1, 0, side_px - 1], [0, 1, 0], [0, 0, 1]] if self.mirrored[row] else np.eye(3))
        crop = np.array([[step, 0, corner[0] + step / 2], [0, step, corner[1] + step / 2], [0, 0, 1]])
        cosine, sine = np.cos(np.deg2rad(self.angle[row])), np.sin(np.deg2rad(self.angle[row]))
        turn = np.array([[cosine, -sine, self.shift[row, 0]], [sine, cosine, self.shift[row, 1]], [0, 0, 1]])
        scale = nucleus.patch_px / PATCH_PX
        place = np.array([[scale, 0, nucleus.xy_px[0]], [0, scale, nucleus.xy_px[1]], [0, 0, 1]])
        found: Floats64 = (place @ turn @ crop @ flip)[:2]
        return found

    def cut(self, row: int, image: NDArray[np.uint8], nucleus: Nucleus, side_px: int) -> NDArray[np.uint8]:
        """The view (S, S, 3) of its cell's image (H, W, 3)."""
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        view = cv2.warpAffine(image, self.matrix(row, nucleus, side_px), (side_px, side_px), flags=how)
        return np.asarray(view, np.uint8)

    def upright(self) -> "Views":
        """The same cells neither turned, moved nor mirrored, the crop in the middle."""
        n = len(self)
        return Views(
            self.cell, np.zeros(n), np.zeros((n, 2)), np.full((n, 2), _MARGIN_PX / 2), np.zeros(n, dtype=np.bool_)
        )

    def displaced(self, offset: Floats64) -> "Views":
        """The same views of nuclei whose centre is displaced by `offset` (N, 2) patch px, a row for each cell."""
        return Views(self.cell, self.angle, self.shift + offset[self.cell], self.corner, self.mirrored)


def views_to_train(cells: Ints, abnormal: NDArray[np.bool_], plan: DeepPap, seed: int, *position: int | str) -> Views:
    """The patches of one epoch in random order: each cell of `cells` as often as its side asks, with random crops.

    `abnormal` (N,) is of all cells. Turns and moves of a cell are the same in every epoch, as of patches that were made
    beforehand; order, crop and mirror are drawn at `position`.
    """
    grid = _grid([(cell, plan.abnormal if abnormal[cell] else plan.normal) for cell in cells.tolist()], seed)
    generator = rng(seed, "epoch", *position)
    order = generator.permutation(len(grid.cell))
    return Views(
        grid.cell[order],
        grid.angle[order],
        grid.shift[order],
        generator.integers(0, _MARGIN_PX + 1, (len(order), 2)).astype(np.float64),
        generator.random(len(order)) < 0.5,
    )


def views_to_test(cells: Ints, plan: DeepPap, seed: int) -> Views:
    """Each view of `cells` in each of `plan.crops` crops, by cell: multi-view and multi-crop testing."""
    grid = _grid([(cell, plan.views) for cell in cells.tolist()], seed)
    half, end = _MARGIN_PX / 2, float(_MARGIN_PX)
    places = [(half, half), (0.0, 0.0), (end, 0.0), (0.0, end), (end, end)]
    crops = [(place, mirrored) for mirrored in (False, True) for place in places][: plan.crops]
    n = len(crops)
    return Views(
        grid.cell.repeat(n),
        grid.angle.repeat(n),
        grid.shift.repeat(n, axis=0),
        np.tile(np.array([place for place, _ in crops]), (len(grid), 1)),
        np.tile(np.array([mirrored for _, mirrored in crops]), len(grid)),
    )


def displacements(n_cells: int, distance_px: float, seed: int) -> Floats64:
    """An offset (N, 2) of `distance_px` patch px for each cell; the direction is the same for every distance."""
    turn = rng(seed, "displacement").uniform(0, 2 * np.pi, n_cells)
    return distance_px * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def _grid(wanted: Sequence[tuple[int, tuple[int, int]]], seed: int) -> Views:
    """Each (cell, (rotations, translations)): equal turns of the circle, moves drawn from a disc of 10 px."""
    cell, angle, shift = [], [], []
    for index, (rotations, translations) in wanted:
        count = rotations * translations
        cell.append(np.full(count, index))
        angle.append((np.arange(rotations) * 360 / rotations).repeat(translations))
        away, turn = rng(seed, "translations", index).uniform(0, 1, (2, count)) * [[1], [2 * np.pi]]
        shift.append((TRANSLATION_PX * np.sqrt(away) * [np.cos(turn), np.sin(turn)]).T)
    n = sum(map(len, cell))
    return Views(
        np.concatenate(cell), np.concatenate(angle), np.concatenate(shift), np.zeros((n, 2)), np.zeros(n, bool)
    )
