"""A slide opened for reading: its size, its µm/px, and rectangles at any coarser µm/px.

A rectangle is read from the next finer level and averaged over the area of each wanted pixel, whatever the ratio.
Taking the nearest level as it comes would make tiles whose scale depends on the scanner. Behind this interface there
is OpenSlide, which opens every format, and a much faster way for slides whose tiles are plain JPEG.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import openslide
from numpy.typing import ArrayLike, NDArray

from papsmear.errors import InputError, UsageError
from papsmear.tiling.jpeg import JpegSource, NotJpegError
from papsmear.tiling.picture import YCbCr, ycbcr_from_rgb
from papsmear.tiling.resample import area_mean
from papsmear.tiling.source import OpenSlideSource, Source

Engine = Literal["auto", "openslide", "jpeg"]

FINEST_MPP, COARSEST_MPP = 0.1, 2.0  # µm/px that a microscope slide scanner gives
ROUNDING = 0.02  # of a µm/px: 0.505 µm/px passes for 0.5
SAME_MPP = 5e-5  # of a µm/px
SAME_PX = 0.005  # of a pixel, over a whole tile
FINE_ENOUGH = 6  # pixels along a wanted one, from which on it makes no difference that some are cut
BLOCK_PX = 2048  # an overview is read in blocks of about this many level pixels a side


def open_slide(path: Path, mpp: float | None = None, engine: Engine = "auto") -> "SlideReader":
    """Opens a slide file, or a DICOM slide given as its folder or any file in it.

    `mpp` is the µm/px of level 0 for a file that does not tell its own. `engine` is `openslide`, `jpeg` (the slide's
    JPEG tiles), or `auto`: `jpeg` where that can be. InputError where the file is no readable slide, or not by that
    engine, or where its µm/px is unknown, differs in x and y, or lies outside 0.1 to 2.
    """
    file = _file_in(path)
    try:
        if file.stat().st_size == 0 and file.suffix.lower() != ".mrxs":  # whose slide lies in the folder beside it
            raise InputError(f"{path}: the slide file is empty (0 bytes); copy it again")
        slide = openslide.OpenSlide(file)
    except OSError as error:
        raise InputError(f"{path}: cannot read the slide: {error.strerror}") from error
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise InputError(f"{path}: not a whole-slide image that OpenSlide knows, or cut short") from error
    except openslide.OpenSlideError as error:
        raise InputError(f"{path}: cannot read the slide, copy or scan it again: {error}") from error
    try:
        return SlideReader(path, _by(engine, file, OpenSlideSource(slide)), mpp)
    except BaseException:
        slide.close()
        raise


def _by(engine: Engine, file: Path, slide: OpenSlideSource) -> Source:
    if engine == "openslide":
        return slide
    try:
        return JpegSource(file, slide)
    except NotJpegError as error:
        if engine == "auto":
            return slide
        raise InputError(f"{file}: not to be read by its JPEG tiles: {error}; use --reader=auto") from error


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
        self._downsamples = source.downsamples

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()

    def check_mpp(self, mpp: float) -> None:
        """InputError where level 0 itself is coarser than `mpp`, by more than rounding (2 %)."""
        if mpp < self.mpp * (1 - ROUNDING):
            raise InputError(
                f"{self.path}: tiles at {mpp:g} µm/px are asked for, but the slide has {self.mpp:g} µm/px; ask for"
                f" {self.mpp:g} or more, or have them enlarged with --upsample=true"
            )

    def downsample_for(self, mpp: float, xy_level0: ArrayLike, size_px: int) -> float:
        """The coarsest downsample from which squares of `size_px` at `mpp`, corners at `xy_level0`, are exact means.

        That is one whose pixels none of the wanted pixels cut, or so small ones that it makes no difference.
        """
        ratio, corners = mpp / self.mpp, np.asarray(xy_level0, np.float64)
        for down, on_grid in zip(self._downsamples[::-1], self._source.on_grid[::-1], strict=True):
            per = ratio / down
            cut_px = max(abs(per - round(per)) * size_px, np.abs(corners / down - np.rint(corners / down)).max())
            if per > 1 - SAME_MPP and ((on_grid and cut_px < SAME_PX) or per >= FINE_ENOUGH):
                return down
        return self._downsamples[0]

    def read(self, xy_level0: tuple[float, float], size_px: int, mpp: float) -> NDArray[np.uint8]:
        """The square with its top left at `xy_level0`, `size_px` wide at `mpp`; what lies outside is background."""
        down = self.downsample_for(mpp, xy_level0, size_px)
        return self._read(xy_level0, (size_px, size_px), mpp, down)

    def overview(self, max_px: int) -> tuple[NDArray[np.uint8], float]:
        """The whole slide with its long side at most `max_px`, and how many level-0 pixels one pixel of it spans."""
        width, height = self.size_level0
        level0_px_per_px = max(1.0, max(width, height) / max_px)
        mpp = self.mpp * level0_px_per_px
        shape = [max(1, round(side / level0_px_per_px)) for side in (height, width)]
        rgb = np.empty((*shape, 3), np.uint8)
        down = max(
            (d for d in self._downsamples if d <= level0_px_per_px * (1 + SAME_MPP)), default=self._downsamples[0]
        )
        ratio = level0_px_per_px / down
        block = max(1, int(BLOCK_PX / ratio))
        for y in range(0, shape[0], block):
            for x in range(0, shape[1], block):
                size = (min(block, shape[1] - x), min(block, shape[0] - y))
                corner = (x * level0_px_per_px, y * level0_px_per_px)
                rgb[y : y + size[1], x : x + size[0]] = self._read(corner, size, mpp, down)
        return rgb, level0_px_per_px

    def _read(
        self, xy_level0: tuple[float, float], size_px: tuple[int, int], mpp: float, down: float
    ) -> NDArray[np.uint8]:
        ratio = mpp / (self.mpp * down)
        # Read from a whole pixel of the level; `offset` is where the rectangle starts in what is read.
        left, top = (int(np.floor(np.floor(v / down + 1e-6) * down)) for v in xy_level0)
        x, y = (max(0.0, v / down - c / down) for v, c in zip(xy_level0, (left, top), strict=True))
        width, height = (int(np.ceil(o + n * ratio - 1e-6)) for o, n in zip((x, y), size_px, strict=True))
        with self._named_damage():
            rgb = self._source.region((left, top), self._downsamples.index(down), (width, height))
        return np.ascontiguousarray(area_mean(rgb, (x, y), (ratio, ratio), size_px))

    def tiles(self, xy_level0: NDArray[np.int64], size_px: int, mpp: float) -> Iterator[YCbCr]:
        """The squares with their top left at `xy_level0` (N, 2), in rows from the top down, as `read` has them.

        They lie on the slide. Each is good until the next one is asked for. InputError where the slide is damaged.
        """
        down = self.downsample_for(mpp, xy_level0, size_px)
        if not isinstance(self._source, JpegSource):
            size = (size_px, size_px)
            yield from (ycbcr_from_rgb(self._read((x, y), size, mpp, down)) for x, y in xy_level0.tolist())
            return
        ratio = mpp / (self.mpp * down)
        strips = self._source.strips(self._downsamples.index(down), xy_level0 / down, size_px * ratio)
        while True:
            with self._named_damage():
                try:
                    strip, xy_px = next(strips)
                except StopIteration:
                    return
            yield strip.square(xy_px, ratio, size_px)

    @contextmanager
    def _named_damage(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.path}: damaged or cut short ({error}); copy it again") from error


def check_given_mpp(mpp: float | None) -> None:
    """UsageError for an option --mpp that no slide has."""
    if mpp is not None and not FINEST_MPP <= mpp <= COARSEST_MPP:
        raise UsageError(f"--mpp={mpp:g} is not the µm/px of a slide; {FINEST_MPP:g} to {COARSEST_MPP:g} is")


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
