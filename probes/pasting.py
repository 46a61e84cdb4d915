"""C3P, cervical cell copy-pasting: a labelled single cell on an unlabelled tile makes a labelled tile.

The cell lies at a uniformly drawn place where it fits whole, and the tile takes its label. Positive cells belong on
tiles of positive slides, negative ones on tiles of negative slides; of the latter some stay as they are, so that a
pasted cell alone does not tell the classes apart. Three ways, of one study (journal version of Stegmüller et al., arXiv
2302.05195, as third parties report it): `paste` replaces, `blend` takes (1-λ)·cell + λ·canvas with λ ~ U[0, 1],
`poisson` solves for the cell's gradients (`papsmear.probes.poisson`).

Shapes: H x W a canvas, h x w a cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.errors import InputError, UsageError
from papsmear.probes.labelled import LabelledCell, by_side
from papsmear.probes.poisson import poisson

Method = Literal["paste", "blend", "poisson"]
METHODS: tuple[Method, ...] = get_args(Method)
LOOSE_PX = 2  # what `poisson` takes around a mask: it wants a loose selection, with the cell's edge inside it

Tile = NDArray[np.uint8]


@dataclass(frozen=True)
class Pasting:
    """Makes labelled tiles of canvases. `probability`: how often a canvas of a negative slide gets a cell."""

    cells: Sequence[LabelledCell]
    method: Method = "poisson"
    probability: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"method {self.method!r} is none of {', '.join(METHODS)}")
        if not 0 <= self.probability <= 1:
            raise UsageError(f"probability {self.probability:g} is not from 0 to 1")

    def __call__(self, canvas: Tile, label: int, rng: np.random.Generator) -> Tile:
        """A tile (H, W, 3) of the canvas (H, W, 3) of a slide with `label`; the label is the tile's too.

        The same generator gives the same cell and place whatever method and probability are.
        """
        chance, (cell, place, share) = rng.random(), self.draw(canvas, label, rng)
        if label == 0 and chance >= self.probability:
            return canvas.copy()
        return pasted(canvas, cell, place, self.method, share)

    def draw(self, canvas: Tile, label: int, rng: np.random.Generator) -> tuple[LabelledCell, tuple[int, int], float]:
        """A cell of that label which fits the canvas whole, the (x, y) of its top left in it, and λ."""
        height, width = canvas.shape[:2]
        fitting = [c for c in self._sides[label] if c.image.shape[0] <= height and c.image.shape[1] <= width]
        if not fitting:
            side = "positive" if label else "negative"
            raise InputError(f"no {side} cell fits whole on a tile of {width}x{height} px; give larger tiles or cells")
        cell = fitting[int(rng.integers(len(fitting)))]
        x, y = (int(rng.integers(n - m + 1)) for n, m in zip((width, height), cell.image.shape[1::-1], strict=True))
        return cell, (x, y), float(rng.random())

    @cached_property
    def _sides(self) -> dict[int, list[LabelledCell]]:
        return {label: by_side(self.cells, label) for label in (0, 1)}


def pasted(canvas: Tile, cell: LabelledCell, xy: tuple[int, int], method: Method, share: float) -> Tile:
    """The cell on the canvas with its top left at `xy`; `share` is λ, which only `blend` looks at."""
    height, width = cell.image.shape[:2]
    window = (slice(xy[1], xy[1] + height), slice(xy[0], xy[0] + width))
    under = canvas[window]
    if method == "poisson":
        inside = cell.inside
        if inside is not None:
            around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * LOOSE_PX + 1,) * 2)
            inside = cv2.dilate(inside.astype(np.uint8), around) > 0
        patch = poisson(cell.image, under, inside)
    else:
        kept = share if method == "blend" else 0.0
        patch = (1 - kept) * cell.image + kept * under
        if cell.inside is not None:
            patch[~cell.inside] = under[~cell.inside]
    tile = canvas.copy()
    tile[window] = patch.round().clip(0, 255).astype(np.uint8)
    return tile
