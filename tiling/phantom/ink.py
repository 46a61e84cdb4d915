"""Light through things, as whole numbers.

An ink is a sprite as a scene keeps it: natural-log optical densities in units of 1/2500, a tenth of a grey level.
Where things overlap their densities add up, and whole numbers do so exactly.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.tiling.phantom.sprite import Sprite

UNITS = 2500.0
_DENSEST = 3.0  # of one thing: eight of the densest fit on each other
_ROWS_AT_ONCE = 16  # of a block, which the processor's cache then holds


@dataclass(frozen=True)
class Ink:
    """A sprite as the scene keeps it: whole-number optical densities (H, W, 3), its kind and its outline."""

    density: NDArray[np.uint16]
    kind: str
    outline: NDArray[np.int32] | None  # (P, 2) x, y from the array's corner; None for what is not abnormal


def ink_of(sprite: Sprite) -> Ink:
    """The densities of a sprite, and its outline if it is an abnormal cell."""
    density = -np.log(np.maximum(sprite.transmittance, np.exp(-_DENSEST)))
    outline = None
    if sprite.abnormal:
        contours, _ = cv2.findContours(sprite.cytoplasm.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        outline = cv2.approxPolyDP(max(contours, key=cv2.contourArea), 1.0, closed=True)[:, 0].astype(np.int32)
    return Ink(np.rint(density * UNITS).astype(np.uint16), sprite.kind, outline)


def blurred(density: NDArray[np.uint16], sigma_px: float) -> NDArray[np.uint16]:
    """Out of focus; larger by what spreads over the border."""
    if not sigma_px:
        return density
    pad = pad_px(sigma_px)
    wide = cv2.copyMakeBorder(density.astype(np.float32), pad, pad, pad, pad, cv2.BORDER_CONSTANT)
    side = 2 * pad + 1
    return np.rint(cv2.GaussianBlur(wide, (side, side), sigma_px)).astype(np.uint16)


def pad_px(sigma_px: float) -> int:
    """By how many px a blur reaches over the border."""
    return int(np.ceil(2.5 * sigma_px))


def turned(density: NDArray[np.uint16], turn: int) -> NDArray[np.uint16]:
    """One of the eight turns and flips: bit 0 swaps x and y, bit 1 flips x, bit 2 flips y, in this order."""
    if turn & 1:
        density = np.asarray(cv2.transpose(density), np.uint16)
    if turn & 6:
        density = np.asarray(cv2.flip(density, {2: 1, 4: 0, 6: -1}[turn & 6]), np.uint16)
    return density


def turned_points(ink: Ink, turn: int) -> NDArray[np.int32]:
    """The outline under the same turn."""
    height, width = ink.density.shape[:2]
    assert ink.outline is not None
    x, y = ink.outline.T
    if turn & 1:
        x, y, width, height = y, x, height, width
    x = width - 1 - x if turn & 2 else x
    y = height - 1 - y if turn & 4 else y
    return np.stack([x, y], 1)


def add(canvas: NDArray[np.uint16], density: NDArray[np.uint16], x: int, y: int) -> None:
    """Adds what of `density`, its corner at (x, y), lies on the canvas."""
    height, width = canvas.shape[:2]
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + density.shape[1], width), min(y + density.shape[0], height)
    if x0 < x1 and y0 < y1:
        canvas[y0:y1, x0:x1] += density[y0 - y : y1 - y, x0 - x : x1 - x]


def light_through(canvas: NDArray[np.uint16], seen: NDArray[np.uint8]) -> None:
    """Writes what the sensor sees through the densities into `seen`."""
    for top in range(0, canvas.shape[0], _ROWS_AT_ONCE):
        rows = slice(top, top + _ROWS_AT_ONCE)
        light = np.multiply(canvas[rows], np.float32(-1 / UNITS), dtype=np.float32)
        cv2.exp(light, light)
        light *= 255.0
        seen[rows] = light
