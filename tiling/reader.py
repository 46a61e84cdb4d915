"""A slide opened for reading: its size, its µm/px, and rectangles at any coarser µm/px.

A rectangle is read from the next finer level and averaged over the area of each wanted pixel, whatever the ratio.
Taking the nearest level as it comes would make tiles whose scale depends on the scanner. Behind this interface there
is OpenSlide, which opens every format.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray

from papsmear.errors import InputError
from papsmear.tiling.source import OpenSlideSource, Source

FINEST_MPP, COARSEST_MPP = 0.1, 2.0  # µm/px that a microscope slide scanner gives
ROUNDING = 0.02  # of a µm/px: 0.505 µm/px passes for 0.5
BLOCK_PX = 2048  # an overview is read in blocks of about this many level pixels a side


def open_slide(path: Path, mpp: float | None = None) -> "SlideReader":
    """Opens a slide file, or a DICOM slide given as its folder or any file in it.

    `mpp` is the µm/px of level 0 for a file that does not tell its own. InputError where the file is no readable
    slide, or where its µm/px is unknown, differs in x and y, or lies outside 0.1 to 2.
    """
    file = _file_in(path)
    try:
        if file.stat().st_size == 0:
            raise InputError(f"{path}: the slide file is empty (0 bytes); copy it again")
        slide = openslide.OpenSlide(file)
    except OSError as error:
        raise InputError(f"{path}: cannot read the slide: {error.strerror}") from error
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise InputError(f"{path}: not a whole-slide image that OpenSlide knows, or cut short") from error
    except openslide.OpenSlideError as error:
        raise InputError(f"{path}: cannot read the slide, copy or scan it again: {error}") from error
    try:
        return SlideReader(path, OpenSlideSource(slide), mpp)
    except BaseException:
        slide.close()
        raise


def _file_in(path: Path) -> Path:
    """The file to give to OpenSlide: `path`, or the first DICOM file where `path` is a folder."""
    if not path.is_dir():
        return path
    for file in sorted(path.iterdir()):
        if file.is_file() and openslide.OpenSlide.detect_format(file) == "dicom":
            return file
    raise InputError(f"{path}: the folder holds no DICOM slide; other slides are given as a file")


class SlideReader:
    """One open slide; a context manager. Positions are level-0 pixels (x, y), pictures (H, W, 3) uint8 RGB."""

    def __init__(self, path: Path, source: Source, mpp: float | None = None) -> None:
        self.path = path
        self._source = source
        own_mpp = _square_mpp(path, source.mpp_xy)
        if own_mpp is None and mpp is None:
            raise InputError(
                f"{path}: the file does not tell its µm/px; give it in the column mpp of slides.csv, or for all such"
                " slides with --mpp"
            )
        self.mpp_from = "file" if own_mpp is not None else "given"
        self.mpp: float = _checked_mpp(path, own_mpp if own_mpp is not None else mpp)
        self.level_sizes = source.level_sizes
        self.size_level0 = self.level_sizes[0]
        self.level_downsamples = source.level_downsamples
        self.format, self.engine = source.format, source.engine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()

    def level_for(self, mpp: float) -> int:
        """The coarsest level that is no coarser than `mpp`. InputError where level 0 itself is coarser.

        Level 0 may be coarser by rounding (2 %).
        """
        if mpp < self.mpp * (1 - ROUNDING):
            raise InputError(
                f"{self.path}: tiles at {mpp:g} µm/px are asked for, but the slide has {self.mpp:g} µm/px; ask for"
                f" {self.mpp:g} or more"
            )
        fine = [i for i, down in enumerate(self.level_downsamples) if self.mpp * down <= mpp * (1 + 1e-6)]
        return max(fine, key=lambda i: self.level_downsamples[i], default=0)

    def read(self, xy_level0: tuple[float, float], size_px: int, mpp: float) -> NDArray[np.uint8]:
        """The square with its top left at `xy_level0`, `size_px` wide at `mpp`; what lies outside is background."""
        return self._read(xy_level0, (size_px, size_px), mpp)

    def overview(self, max_px: int) -> tuple[NDArray[np.uint8], float]:
        """The whole slide with its long side at most `max_px`, and how many level-0 pixels one pixel of it spans."""
        width, height = self.size_level0
        level0_px_per_px = max(1.0, max(width, height) / max_px)
        mpp = self.mpp * level0_px_per_px
        shape = [max(1, round(side / level0_px_per_px)) for side in (height, width)]
        rgb = np.empty((*shape, 3), np.uint8)
        ratio = level0_px_per_px / self.level_downsamples[self.level_for(mpp)]
        block = max(1, int(BLOCK_PX / ratio))
        for y in range(0, shape[0], block):
            for x in range(0, shape[1], block):
                size = (min(block, shape[1] - x), min(block, shape[0] - y))
                corner = (x * level0_px_per_px, y * level0_px_per_px)
                rgb[y : y + size[1], x : x + size[0]] = self._read(corner, size, mpp)
        return rgb, level0_px_per_px

    def _read(self, xy_level0: tuple[float, float], size_px: tuple[int, int], mpp: float) -> NDArray[np.uint8]:
        level = self.level_for(mpp)
        down = self.level_downsamples[level]
        ratio = mpp / (self.mpp * down)
        # Read from a whole pixel of the level; `offset` is where the rectangle starts in what is read.
        corner = [int(np.floor(np.floor(v / down + 1e-6) * down)) for v in xy_level0]
        offset = [max(0.0, v / down - c / down) for v, c in zip(xy_level0, corner, strict=True)]
        size = [int(np.ceil(o + n * ratio - 1e-6)) for o, n in zip(offset, size_px, strict=True)]
        try:
            rgb = self._source.region((corner[0], corner[1]), level, (size[0], size[1]))
        except InputError as error:
            raise InputError(f"{self.path}: damaged or cut short ({error}); copy it again") from error
        return area_mean(rgb, offset, ratio, size_px)


def area_mean(
    rgb: NDArray[np.uint8], offset_px: list[float], ratio: float, size_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """Means of `rgb` (h, w, 3) over the squares of side `ratio` px that start at `offset_px` (x, y).

    `size_px` is (width, height) of the result. Squares may cut pixels, which then count by the part that is cut; what
    lies beyond the edge repeats it.
    """
    width, height = size_px
    whole_ratio = round(ratio)
    if abs(ratio - whole_ratio) * max(size_px) < 0.01 and max(offset_px) < 0.01:
        cut = rgb[: height * whole_ratio, : width * whole_ratio]
        if cut.shape[:2] == (height * whole_ratio, width * whole_ratio):
            return cv2.resize(cut, size_px, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    rows = _mean_along_0(rgb.astype(np.float32), offset_px[1], ratio, height)
    columns = _mean_along_0(rows.transpose(1, 0, 2), offset_px[0], ratio, width)
    return np.ascontiguousarray(np.rint(columns.transpose(1, 0, 2)), np.uint8)


def _mean_along_0(values: NDArray[np.float32], start: float, ratio: float, n: int) -> NDArray[np.float32]:
    """Means over [start + i ratio, start + (i + 1) ratio), by differences of the running sum at those edges."""
    sums = np.concatenate([np.zeros_like(values[:1], np.float64), np.cumsum(values, axis=0, dtype=np.float64)])
    edges = np.minimum(start + ratio * np.arange(n + 1), len(values))
    below = np.minimum(edges.astype(np.intp), len(values) - 1)
    part = (edges - below)[:, None, None]
    at_edges = sums[below] + part * values[below]
    widths = np.maximum(np.diff(edges), 1e-9)[:, None, None]
    return np.asarray(np.diff(at_edges, axis=0) / widths, np.float32)


def _square_mpp(path: Path, mpp_xy: tuple[float, float] | None) -> float | None:
    if mpp_xy is None:
        return None
    x, y = mpp_xy
    if abs(x - y) > 0.01 * max(x, y):
        raise InputError(f"{path}: pixels are not square ({x:g} by {y:g} µm); scan or export it with square pixels")
    return (x + y) / 2


def _checked_mpp(path: Path, mpp: float | None) -> float:
    if mpp is None or not FINEST_MPP <= mpp <= COARSEST_MPP:
        raise InputError(
            f"{path}: {mpp} µm/px lies outside {FINEST_MPP:g} to {COARSEST_MPP:g}; correct the resolution in the file"
        )
    return mpp
