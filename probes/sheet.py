"""A picture of pasted tiles: the same cell at the same place of the same canvas, a column for each way of pasting."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear import seeds
from papsmear.probes.labelled import LabelledCell
from papsmear.probes.pasting import METHODS, Pasting, Tile, pasted

_GAP, _LINE = 4, 18  # px: between pictures, and of a caption
_INK = (60, 60, 60)


def sheet(
    canvases: Sequence[Tile], labels: Sequence[int], cells: Sequence[LabelledCell], seed: int, rows: int = 6
) -> NDArray[np.uint8]:
    """A sheet (H, W, 3) uint8 of `rows` canvases, positive and negative in turn: canvas, cell, then each method."""
    of_label = [[i for i, found in enumerate(labels) if found == label] for label in (1, 0)]
    pasting = Pasting(cells)
    lines = []
    for row in range(rows):
        label, rng = 1 - row % 2, seeds.rng(seed, "sheet", row)
        members = of_label[1 - label]
        canvas = canvases[members[int(rng.integers(len(members)))]]
        cell, xy, share = pasting.draw(canvas, label, rng)
        alone = np.full_like(canvas, 255)
        alone[: cell.image.shape[0], : cell.image.shape[1]] = cell.image
        pictures = {"canvas": canvas, "cell, " + ("positive" if label else "negative"): alone}
        for method in METHODS:
            name = f"blend, lambda = {share:.2f}" if method == "blend" else method
            pictures[name] = pasted(canvas, cell, xy, method, share)
        lines.append(np.hstack([_captioned(picture, caption) for caption, picture in pictures.items()]))
    return np.vstack(lines)


def _captioned(picture: Tile, caption: str) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    place = np.full((height + _LINE + _GAP, width + _GAP, 3), 255, np.uint8)
    place[_LINE : _LINE + height, :width] = picture
    cv2.putText(place, caption, (1, _LINE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
    return place
