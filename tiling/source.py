"""What a slide's pixels come from: the libraries that open slide files, behind the few things a reader asks of them.

OpenSlide opens every format. What it does not give (JPEG tiles decoded small, several focal planes in one DICOM) has a
source of its own with the same face, so that nothing above knows which it is.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import openslide
from numpy.typing import NDArray

from papsmear.errors import InputError


class Source(Protocol):
    """The levels of one slide in one focal plane. Level 0 is the finest."""

    engine: str  # which way of reading it is, as slide.json says it
    format: str  # the scanner's maker or the file format, as OpenSlide names it
    mpp_xy: tuple[float, float] | None  # µm/px of level 0 as the file tells it
    level_sizes: tuple[tuple[int, int], ...]  # (width, height)
    level_downsamples: tuple[float, ...]
    downsamples: tuple[float, ...]  # at which it can be read, finest first: the levels', or more
    on_grid: tuple[bool, ...]  # of each of those, whether its pixels come as they are stored, not shifted by a part

    def region(self, xy_level0: tuple[int, int], at: int, size_px: tuple[int, int]) -> NDArray[np.uint8]:
        """Pixels (h, w, 3) RGB at `downsamples[at]`, `size_px` (w, h) of them, from `xy_level0` on; background beyond
        the edge.

        InputError, without the file's name, where the file is damaged there.
        """
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


def exact_downsamples(level_sizes: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """How many level-0 pixels one of each level spans.

    Scanners shrink by whole numbers and cut off what is left over, or fill it up; the quotient of the sizes, which
    OpenSlide gives, is then off by a pixel over a wide slide.
    """
    downsamples = []
    for size in level_sizes:
        quotients = [whole / part for whole, part in zip(level_sizes[0], size, strict=True)]
        near = round(sum(quotients) / 2)
        fits = all(abs(whole / near - part) < 1 for whole, part in zip(level_sizes[0], size, strict=True))
        downsamples.append(float(near) if fits else sum(quotients) / 2)
    return tuple(downsamples)


class OpenSlideSource:
    """A slide as OpenSlide gives it; see `Source`."""

    engine = "openslide"

    def __init__(self, slide: Any) -> None:
        self._slide = slide
        properties = slide.properties
        self.format = str(properties.get("openslide.vendor", ""))
        self.mpp_xy: tuple[float, float] | None
        try:
            self.mpp_xy = float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"])
        except (KeyError, ValueError):
            self.mpp_xy = None
        self.level_sizes: tuple[tuple[int, int], ...] = slide.level_dimensions
        self.level_downsamples = self.downsamples = exact_downsamples(self.level_sizes)
        # OpenSlide wants level-0 pixels and divides them by its own quotient: between two pixels of the level, often.
        self.on_grid = tuple(a == b for a, b in zip(slide.level_downsamples, self.downsamples, strict=True))
        background = str(properties.get("openslide.background-color", "FFFFFF"))
        self._background = np.frombuffer(bytes.fromhex(background), np.uint8)

    def region(self, xy_level0: tuple[int, int], at: int, size_px: tuple[int, int]) -> NDArray[np.uint8]:
        """See `Source`."""
        by_openslide = self._slide.level_downsamples[at] / self.downsamples[at]
        x, y = (round(v * by_openslide) for v in xy_level0)
        try:
            rgba = np.asarray(self._slide.read_region((x, y), at, size_px))
        except openslide.OpenSlideError as error:
            raise InputError(f"level {at} at x {x}, y {y}: {error}") from error
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(rgb)
        weight = alpha.astype(np.float32) / 255
        return np.rint(rgb * weight + self._background * (1 - weight)).astype(np.uint8)

    def close(self) -> None:
        """See `Source`."""
        self._slide.close()
