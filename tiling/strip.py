"""A strip across a slide into which its compressed tiles are decoded side by side, each once.

Rectangles of the slide are then views of the strip's memory, wherever they lie over the slide's own tiles. From one row
of rectangles to the next the strip moves down and keeps the tiles that both rows need.
"""

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.errors import InputError
from papsmear.tiling.picture import YCbCr, rgb_from_channels, ycbcr_from_rgb
from papsmear.tiling.resample import area_mean
from papsmear.turbo import Decoder, JpegError

Channel = NDArray[np.uint8]


class Strip:
    """Three channels of a slide's level at 1/`scale`; positions are pixels of that scale.

    Args:
        streams: Gives the JPEG bytes of tiles by their indices, which count row by row.
        decoder: Decodes them.
        size_px: (width, height) of the level at 1/1.
        tile_px: (width, height) of its tiles at 1/1.
        scale: 1, 2, 4 or 8.
        step: Pixels (x, y) that a sample of channels 1 and 2 stands for.
        is_rgb: Whether the channels are R, G, B; else Y, Cb, Cr.
        x_px: Between which two x the rectangles will lie.
        height_px: How high they are at the most.
    """

    def __init__(
        self,
        streams: Callable[[Sequence[int]], Iterator[bytes]],
        decoder: Decoder,
        size_px: tuple[int, int],
        tile_px: tuple[int, int],
        scale: int,
        step: tuple[int, int],
        is_rgb: bool,
        x_px: tuple[float, float],
        height_px: float,
    ) -> None:
        self._streams, self._decoder, self._step, self._is_rgb = streams, decoder, step, is_rgb
        self._tile_px, self._size_px = tile_px, size_px
        self._side = (tile_px[0] // scale, tile_px[1] // scale)
        self._grid = (-(-size_px[0] // tile_px[0]), -(-size_px[1] // tile_px[1]))
        self._left = min(self._grid[0], max(0, int(x_px[0] // self._side[0])))
        right = max(self._left, min(self._grid[0], int(-(-x_px[1] // self._side[0]))))
        rows = min(self._grid[1], int(-(-height_px // self._side[1])) + 1)
        shape = (rows * self._side[1], (right - self._left) * self._side[0])
        colour = (shape[0] // step[1], shape[1] // step[0])
        self._channels = (np.empty(shape, np.uint8), np.empty(colour, np.uint8), np.empty(colour, np.uint8))
        self._begins = [channel.ctypes.data for channel in self._channels]  # asked for once: it takes a microsecond
        self._top = 0  # the first row of tiles in memory
        self._done = np.zeros((rows, right - self._left), bool)

    @property
    def xy_px(self) -> tuple[int, int]:
        """Where the memory begins."""
        return self._left * self._side[0], self._top * self._side[1]

    def cover(self, xy_px: tuple[float, float], size_px: tuple[float, float]) -> bool:
        """Decodes what lies under a rectangle and is not there yet; False where nothing of the slide lies there.

        The rectangles' tops must not go up. InputError where a tile is damaged.
        """
        (left, top), (right, bottom) = (
            [max(0, int(v // s)) for v, s in zip(xy_px, self._side, strict=True)],
            [min(n, int(-(-(v + w) // s))) for v, w, s, n in zip(xy_px, size_px, self._side, self._grid, strict=True)],
        )
        if left >= right or top >= bottom:
            return False
        self._move(min(top, self._grid[1] - len(self._done)))
        for row in range(top, bottom):
            done = self._done[row - self._top, left - self._left : right - self._left]
            if done.all():
                continue
            columns = (left + np.flatnonzero(~done)).tolist()
            indices = [row * self._grid[0] + column for column in columns]
            for column, jpeg in zip(columns, self._streams(indices), strict=True):
                self._decode(row, column, jpeg)
            done[:] = True
        return True

    def _move(self, top: int) -> None:
        """Makes row `top` of tiles the first one in memory."""
        down = top - self._top
        if down <= 0:
            return
        kept = max(0, len(self._done) - down)
        for channel, step in zip(self._channels, (1, self._step[1], self._step[1]), strict=True):
            height = self._side[1] // step
            channel[: kept * height] = channel[down * height : (down + kept) * height]
        self._done[:kept] = self._done[down : down + kept]
        self._done[kept:] = False
        self._top = top

    def _decode(self, row: int, column: int, jpeg: bytes) -> None:
        width, height = self._side
        x, y = (column - self._left) * width, (row - self._top) * height
        row_bytes = self._done.shape[1] * width
        row_bytes_colour = row_bytes // self._step[0]
        first, second, third = self._begins
        at = y // self._step[1] * row_bytes_colour + x // self._step[0]
        places, strides = (first + y * row_bytes + x, second + at, third + at), (row_bytes, row_bytes_colour)
        try:
            if column == self._grid[0] - 1 or row == self._grid[1] - 1:
                self._decode_at_edge(row, column, jpeg)
            else:
                self._decoder.decode(jpeg, self._side, places, strides)
        except JpegError as error:
            raise InputError(f"tile {row * self._grid[0] + column}: {error}") from error

    def _decode_at_edge(self, row: int, column: int, jpeg: bytes) -> None:
        """With white beyond the slide's edge, where tiles are filled up with anything; made small after that."""
        width, height = self._tile_px
        sx, sy = self._step
        colour = (height // sy, width // sx)
        channels = (np.empty((height, width), np.uint8), np.empty(colour, np.uint8), np.empty(colour, np.uint8))
        first, second, third = (channel.ctypes.data for channel in channels)
        self._decoder.decode(jpeg, self._tile_px, (first, second, third), (width, width // sx))
        inside = (self._size_px[0] - column * width, self._size_px[1] - row * height)
        white = (255, 255, 255) if self._is_rgb else (255, 128, 128)
        x, y = (column - self._left) * self._side[0], (row - self._top) * self._side[1]
        for channel, value, strip, steps in zip(
            channels, white, self._channels, ((1, 1), self._step, self._step), strict=True
        ):
            channel[-(-inside[1] // steps[1]) :] = value
            channel[:, -(-inside[0] // steps[0]) :] = value
            size = (self._side[0] // steps[0], self._side[1] // steps[1])
            small = cv2.resize(channel, size, interpolation=cv2.INTER_AREA)
            strip[y // steps[1] :, x // steps[0] :][: size[1], : size[0]] = small

    def rgb(self) -> NDArray[np.uint8]:
        """(H, W, 3), all that is in memory."""
        if self._is_rgb:
            return np.asarray(cv2.merge(self._channels), np.uint8)
        return rgb_from_channels(*self._channels, self._step)

    def square(self, xy_px: tuple[float, float], ratio: float, size_px: int) -> YCbCr:
        """`size_px` pixels a side, each the mean of `ratio` x `ratio` px, from `xy_px` on; it may be a view."""
        x, y = (v - first for v, first in zip(xy_px, self.xy_px, strict=True))
        if self._is_rgb:
            small = [area_mean(c, (x, y), (ratio, ratio), (size_px, size_px)) for c in self._channels]
            return ycbcr_from_rgb(np.asarray(cv2.merge(small), np.uint8))
        # A wanted colour sample spans two wanted pixels a side: in samples of the slide, by their step.
        sx, sy = self._step
        half = (size_px + 1) // 2
        return YCbCr(
            area_mean(self._channels[0], (x, y), (ratio, ratio), (size_px, size_px)),
            *(
                area_mean(c, (x / sx, y / sy), (2 * ratio / sx, 2 * ratio / sy), (half, half))
                for c in self._channels[1:]
            ),
        )
