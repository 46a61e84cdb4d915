"""TIFF-based slides whose tiles are plain JPEG, read by their compressed tiles.

tifffile tells where the tiles lie; they are read as bytes and decoded at 1/1, 1/2, 1/4 or 1/8, which gives three more
levels beside each stored one at a fraction of the work. What the decoder gives are the channels as they are stored;
whether these are YCbCr or RGB is told by the TIFF tag alone, since streams within a TIFF seldom say it rightly.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from papsmear.errors import InputError
from papsmear.tiling.source import Source
from papsmear.tiling.strip import Strip
from papsmear.turbo import REMEDY, SCALES, SUBSAMPLINGS, Decoder, JpegError, library

FORMATS = ("aperio", "generic-tiff")  # whose tiles lie edge to edge; others overlap or are several scans
STRIP_BYTES = 80 * 2**20  # of one focal plane: three of them stay below 400 MB
READ_BYTES, GAP_BYTES = 4 * 2**20, 4096
JPEG, RGB, YCBCR = 7, 2, 6  # Compression and PhotometricInterpretation of TIFF


class NotJpegError(Exception):
    """Why a slide cannot be read by its JPEG tiles."""


@dataclass(frozen=True)
class Level:
    """A stored level: where its compressed tiles lie, row by row."""

    size_px: tuple[int, int]
    tile_px: tuple[int, int]
    offsets: Sequence[int]
    lengths: Sequence[int]
    tables: bytes  # quantisation and Huffman tables that all tiles share, ready to stand in front of one


class JpegSource:
    """A slide read by its JPEG tiles; see `Source`. NotJpegError where it has others."""

    engine = "jpeg"

    def __init__(self, path: Path, slide: Source) -> None:
        """`slide` is the same file through OpenSlide, which knows what format and levels it has."""
        self.format, self.mpp_xy = slide.format, slide.mpp_xy
        self.level_sizes, self.level_downsamples = slide.level_sizes, slide.level_downsamples
        if library() is None:
            raise NotJpegError(f"libjpeg-turbo is not there; {REMEDY}")
        self._slide = slide
        self._levels, photometric = _levels(path, slide)
        self._is_rgb = photometric == RGB
        self._file = os.open(path, os.O_RDONLY)
        try:
            self._decoder = Decoder()
            self._step = self._subsampling()
        except BaseException:
            os.close(self._file)
            raise
        # Of two ways to the same size the one from the smaller stored level is less work.
        ways = {
            round(down * scale, 3): (level, scale)
            for level, down in zip(self._levels, self.level_downsamples, strict=True)
            for scale in SCALES
            if all(side % (scale * step) == 0 for side, step in zip(level.tile_px, self._step, strict=True))
        }
        self.downsamples = tuple(sorted(ways))
        self._ways = [ways[down] for down in self.downsamples]
        self.on_grid = (True,) * len(self.downsamples)

    def _subsampling(self) -> tuple[int, int]:
        """Pixels (x, y) of a colour sample, the same in all levels."""
        found = set()
        for level in self._levels:
            try:
                width, height, kind = self._decoder.header(next(self._streams(level, [0])))
            except (JpegError, InputError) as error:
                raise NotJpegError(f"its first tile cannot be decoded: {error}") from error
            if (width, height) != level.tile_px or kind not in SUBSAMPLINGS:
                raise NotJpegError(f"its JPEG tiles are {width} x {height} px of kind {kind}")
            found.add(SUBSAMPLINGS[kind])
        if len(found) > 1 or (self._is_rgb and found != {(1, 1)}):
            raise NotJpegError("its tiles subsample colour in several ways, or in RGB")
        return found.pop()

    def _streams(self, level: Level, indices: Sequence[int]) -> Iterator[bytes]:
        """Whole JPEGs of tiles. Those that lie one behind the other in the file are read in one go: on a network disk
        each request waits for its answer. InputError where the file ends before.
        """
        begin = 0
        while begin < len(indices):
            first = last = level.offsets[indices[begin]]
            end = begin
            while end < len(indices):
                at, length = level.offsets[indices[end]], level.lengths[indices[end]]
                if end > begin and not (0 <= at - last <= GAP_BYTES and at + length - first <= READ_BYTES):
                    break
                last, end = at + length, end + 1
            data = os.pread(self._file, last - first, first)
            for index in indices[begin:end]:
                at = level.offsets[index] - first
                jpeg = data[at : at + level.lengths[index]]
                if len(jpeg) < level.lengths[index]:
                    raise InputError(f"the file ends within tile {index}")
                yield level.tables + jpeg[2:] if level.tables else jpeg
            begin = end

    def region(self, xy_level0: tuple[int, int], at: int, size_px: tuple[int, int]) -> NDArray[np.uint8]:
        """See `Source`."""
        x, y = (round(v / self.downsamples[at]) for v in xy_level0)
        canvas = np.full((size_px[1], size_px[0], 3), 255, np.uint8)
        strip = self.strip(at, (x, x + size_px[0]), size_px[1])
        if strip.cover((x, y), size_px):
            seen = strip.rgb()
            left, top = strip.xy_px[0] - x, strip.xy_px[1] - y
            inside = seen[max(0, -top) : size_px[1] - top, max(0, -left) : size_px[0] - left]
            canvas[max(0, top) :, max(0, left) :][: inside.shape[0], : inside.shape[1]] = inside
        return canvas

    def strip(self, at: int, x_px: tuple[float, float], height_px: float) -> Strip:
        """Memory for rectangles of `downsamples[at]` between two x, up to `height_px` high."""
        level, scale = self._ways[at]

        def streams(indices: Sequence[int]) -> Iterator[bytes]:
            return self._streams(level, indices)

        return Strip(
            streams, self._decoder, level.size_px, level.tile_px, scale, self._step, self._is_rgb, x_px, height_px
        )

    def strips(
        self, at: int, xy_px: NDArray[np.float64], side_px: float
    ) -> Iterator[tuple[Strip, tuple[float, float]]]:
        """For each square from `xy_px` (N, 2) on, row by row: a strip that covers it, and the square's place.

        A slide too wide for one strip is decoded in several side by side, which know nothing of the row above.
        """
        left, right = float(xy_px[:, 0].min()), float(xy_px[:, 0].max()) + side_px
        samples = 1 + 2 / (self._step[0] * self._step[1])
        n_parts = int(np.ceil((right - left) * (side_px + self._levels[0].tile_px[1]) * samples / STRIP_BYTES))
        width = (right - left) / n_parts
        part_of = np.minimum((xy_px[:, 0] - left) // width, n_parts - 1)
        strip = self.strip(at, (left, left + width + side_px), side_px)
        for (y, part), squares in itertools.groupby(range(len(xy_px)), lambda i: (xy_px[i, 1], part_of[i])):
            if n_parts > 1:
                begin = left + part * width
                strip = self.strip(at, (begin, begin + width + side_px), side_px)
            xs = xy_px[list(squares), 0]
            for run in np.split(xs, 1 + np.flatnonzero(np.diff(xs) > 2 * side_px)):
                if not strip.cover((float(run[0]), float(y)), (float(run[-1] - run[0]) + side_px, side_px)):
                    raise ValueError(f"squares at y {y:g} lie beyond the slide")
                yield from ((strip, (x, float(y))) for x in run.tolist())

    def close(self) -> None:
        """See `Source`."""
        self._decoder.close()
        os.close(self._file)
        self._slide.close()


def _levels(path: Path, slide: Source) -> tuple[list[Level], int]:
    """The stored levels, and the PhotometricInterpretation that they share."""
    import tifffile  # where it is needed: OpenSlide alone starts faster

    if slide.format not in FORMATS:
        raise NotJpegError(f"{slide.format} files are not read this way")
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = {
                (page.imagewidth, page.imagelength): page
                for page in (page.aspage() for page in tiff.pages)
                if page.is_tiled
            }
            found: list[tifffile.TiffPage] = []
            for page in map(pages.get, slide.level_sizes):
                if page is None or page.compression != JPEG or page.samplesperpixel != 3 or page.bitspersample != 8:
                    raise NotJpegError("not all its levels are tiles of 8-bit colour JPEG")
                if page.photometric not in (RGB, YCBCR) or page.planarconfig != 1 or min(page.databytecounts) == 0:
                    raise NotJpegError("some of its tiles are missing, or of another colour space")
                found.append(page)
            if len({page.photometric for page in found}) > 1:
                raise NotJpegError("its levels differ in their colour space")
            return [_level(page) for page in found], int(found[0].photometric)
    except (OSError, ValueError, IndexError, tifffile.TiffFileError) as error:
        raise NotJpegError(f"tifffile cannot read it ({error})") from error


def _level(page: Any) -> Level:
    tables = page.jpegtables or b""
    return Level(
        size_px=(page.imagewidth, page.imagelength),
        tile_px=(page.tilewidth, page.tilelength),
        offsets=page.dataoffsets,
        lengths=page.databytecounts,
        tables=tables[: tables.rfind(b"\xff\xd9")] if tables else b"",
    )
