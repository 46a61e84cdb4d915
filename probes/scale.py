"""Cells at the encoder's µm/px: resampled, then cut or padded round their centre to the encoder's input.

The other way, and the published one, is to resize each image whole to the encoder's input; then a small cell and a
large one look alike. Padding has the median colour of the image's own border: it is nearest to what lies around the
cell. White, or any other colour of its own, would frame every small cell with an edge that no tile has.
"""

from collections.abc import Iterator
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.errors import UsageError
from papsmear.probes.datasets import CellSet
from papsmear.ssl.card import EncoderCard

Resize = Literal["whole", "mpp"]

USUAL_MPP = 0.5  # µm/px, of encoders that do not tell theirs: 20x, the tiles' scale in the study


def check_scale(cells: CellSet, option: str = "--resize=mpp", otherwise: str = ", or take --resize=whole") -> None:
    """UsageError where an image's µm/px is not known, which `option` needs; `otherwise` is another way out."""
    missing = [path for path, mpp in zip(cells.paths, cells.mpp or (None,) * len(cells.paths), strict=True) if not mpp]
    if missing:
        raise UsageError(
            f"{option}: the µm/px of {len(missing)} of {len(cells.paths)} images of {cells.title} are not known, "
            f"such as {missing[0]}; give them with '{{path: …, mpp: …}}'{otherwise}"
        )


def mpp_of(card: EncoderCard) -> float:
    """The µm/px that images are brought to for an encoder."""
    return USUAL_MPP if card.mpp is None else card.mpp


def at_encoder_scale(cells: CellSet, card: EncoderCard) -> Iterator[NDArray[np.uint8]]:
    """Each image of the set as (input_px, input_px, 3) at the encoder's µm/px."""
    check_scale(cells)
    for image, mpp in zip(cells.images, cells.mpp, strict=True):
        yield centred(rescaled(image, (mpp or USUAL_MPP) / mpp_of(card)), card.input_px)


def rescaled(rgb: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """An image (H, W, 3) `factor` times as large: means over the area when it shrinks, bicubic when it grows."""
    if factor == 1:
        return rgb
    size = (max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor)))
    resized = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    return np.asarray(resized, dtype=np.uint8)


def centred(rgb: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """The middle of an image (H, W, 3), (size_px, size_px, 3); a smaller one on the median colour of its border."""
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])  # (2 W + 2 H, 3)
    square = np.empty((size_px, size_px, 3), np.uint8)
    square[:] = np.median(border, axis=0).round()
    spans = []
    for length in rgb.shape[:2]:
        kept = min(length, size_px)
        at, to = (length - kept) // 2, (size_px - kept) // 2
        spans.append((slice(at, at + kept), slice(to, to + kept)))
    (rows, to_rows), (columns, to_columns) = spans
    square[to_rows, to_columns] = rgb[rows, columns]
    return square
