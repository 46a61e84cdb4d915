"""A tile's picture as JPEG keeps it, and what is measured on it.

Brightness and colour differences apart, the latter at half the size: so a slide's tiles come out of their JPEG streams,
and so they go into those of the shards, without a conversion on the way.
"""

from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

DARKER, OTHER_COLOUR = 0.06, 5  # by which share, or how many grey levels of Cb or Cr, cells differ from the glass


class YCbCr(NamedTuple):
    """`y` (H, W), and `cb` and `cr` (ceil(H / 2), ceil(W / 2)), uint8 in full range (JFIF)."""

    y: NDArray[np.uint8]
    cb: NDArray[np.uint8]
    cr: NDArray[np.uint8]

    def jpeg(self, quality: int) -> bytes:
        """JPEG bytes, 4:2:0."""
        data: bytes = simplejpeg.encode_jpeg_yuv_planes(*self, quality)
        return data


def ycbcr_from_rgb(rgb: NDArray[np.uint8]) -> YCbCr:
    """From (H, W, 3) RGB; colour differences are those of the means of 2 x 2 pixels."""
    _, cr, cb = cv2.split(cv2.cvtColor(halved(rgb), cv2.COLOR_RGB2YCrCb))
    y = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return YCbCr(*(np.asarray(channel, np.uint8) for channel in (y, cb, cr)))


def halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of 2 x 2 pixels of (H, W) or (H, W, 3); the last row and column are repeated where they have no pair."""
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.asarray(cv2.copyMakeBorder(pixels, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8)
    size = ((width + 1) // 2, (height + 1) // 2)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def rgb_from_channels(
    y: NDArray[np.uint8], cb: NDArray[np.uint8], cr: NDArray[np.uint8], step: tuple[int, int]
) -> NDArray[np.uint8]:
    """(H, W, 3) RGB; a colour sample stands for `step` (x, y) pixels, and is interpolated between their centres."""
    height, width = y.shape
    size = (cb.shape[1] * step[0], cb.shape[0] * step[1])
    red, blue = (cv2.resize(c, size, interpolation=cv2.INTER_LINEAR)[:height, :width] for c in (cr, cb))
    return np.asarray(cv2.cvtColor(cv2.merge([y, red, blue]), cv2.COLOR_YCrCb2RGB), np.uint8)


def focus_score(y: NDArray[np.uint8]) -> float:
    """Mean square of the difference between pixels of (H, W) two apart, along x and along y: high where it is sharp.

    The autofocus measure of Brenner et al. 1976 (An automated microscope for cytologic research), in both directions.
    """
    across, down = cv2.norm(y[:, 2:], y[:, :-2], cv2.NORM_L2SQR), cv2.norm(y[2:], y[:-2], cv2.NORM_L2SQR)
    return float(across + down) / (2 * y.size)


def content_score(picture: YCbCr, glass: tuple[int, int, int]) -> float:
    """Share of the picture where something lies on the glass, whose Y, Cb and Cr are given.

    It is counted in squares of 2 x 2 px, every second row of them: thousands, which do for a share.
    """
    empty = halved(picture.y)[::2] > glass[0] * (1 - DARKER)
    for channel, of_glass in zip(picture[1:], glass[1:], strict=True):
        lowest = np.uint8(max(0, of_glass - OTHER_COLOUR))
        empty &= channel[::2] - lowest <= 2 * OTHER_COLOUR  # what is lower wraps round to a large number
    return 1 - float(np.count_nonzero(empty)) / empty.size
