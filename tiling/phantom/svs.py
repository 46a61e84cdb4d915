"""Pyramidal slides in the manner of Aperio's SVS, written strip by strip.

The pixels pass once, from the top down: level 0 is compressed as it comes, and each 4x4 block of it is averaged into
level 4, each of that into level 16, and those into the thumbnail. The coarser levels wait as JPEG tiles in a
temporary file, so memory depends on the slide's width alone.
"""

import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from papsmear.files import whole
from papsmear.tiling.phantom.identity import Identity, label_picture, macro_picture

TILE_PX = 256
QUALITY = 80
_STEP = 4  # between levels
_THUMBNAIL_PX = 1024
_LENGTH = struct.Struct("<I")


def write_svs(
    path: Path,
    size_level0: tuple[int, int],
    strips: Iterable[NDArray[np.uint8]],
    mpp: float,
    identity: Identity,
    app_mag: int = 40,
) -> None:
    """Writes a slide that OpenSlide opens as Aperio: levels 1, 4 and 16, thumbnail, label and macro image.

    The same pixels and arguments give the same bytes. The file appears under its name only when whole.

    Args:
        path: The .svs file.
        size_level0: Width and height in px, multiples of 16, so that the levels are exactly 4 and 16 times smaller.
        strips: RGB strips (256, W, 3) from the top down; the last may be lower.
        mpp: µm per px of level 0.
        identity: The fake patient and user.
        app_mag: Magnification of the objective.
    """
    width, height = size_level0
    if width % 16 or height % 16 or width <= 0 or height <= 0:
        raise ValueError(f"size_level0 {size_level0} is not made of multiples of 16")
    folder = path.parent
    with (
        whole(path) as part,
        tempfile.TemporaryFile(dir=folder) as spool4,
        tempfile.TemporaryFile(dir=folder) as spool16,
        tifffile.TiffWriter(part, bigtiff=True, byteorder="<") as tiff,
    ):
        thumbnail = _Thumbnail((width // 16, height // 16))
        level16 = _Level((width // 16, height // 16), spool16, thumbnail.take)
        level4 = _Level((width // 4, height // 4), spool4, lambda strip: level16.take(_shrunk(strip, _STEP)))
        head = _head(size_level0, mpp, app_mag, identity)
        left = iter(strips)
        _write_page(tiff, size_level0, _encode(left, size_level0, level4), head, TILE_PX)
        if next(left, None) is not None:
            raise ValueError(f"there are more strips than the {height} rows")
        small = thumbnail.rgb()
        _write_picture(tiff, small, _reduced(head, size_level0, (small.shape[1], small.shape[0]), " - "))
        for level in (level4, level16):
            _write_page(tiff, level.size_px, level.tiles(), _reduced(head, size_level0, level.size_px, ""), TILE_PX)
        label = label_picture(identity)
        for name, picture, subfile in (("label", label, 1), ("macro", macro_picture(small, label), 9)):
            _write_picture(tiff, picture, f"{_PROGRAM}\n{name} {picture.shape[1]}x{picture.shape[0]}", subfile)


def _write_picture(tiff: tifffile.TiffWriter, rgb: NDArray[np.uint8], description: str, subfile: int = 0) -> None:
    """Writes a small page in one piece; `subfile` is NewSubfileType."""
    size_px = (rgb.shape[1], rgb.shape[0])
    _write_page(tiff, size_px, iter([_jpeg(rgb)]), description, subfile=subfile)


def _write_page(
    tiff: tifffile.TiffWriter,
    size_px: tuple[int, int],
    jpegs: Iterator[bytes],
    description: str,
    tile_px: int = 0,
    subfile: int = 0,
) -> None:
    """Writes a page of ready JPEG streams: square tiles of `tile_px` row by row, or with 0 one stream."""
    width, height = size_px
    tiff.write(
        jpegs,
        shape=(height, width, 3),
        dtype=np.uint8,
        photometric="rgb",
        compression="jpeg",
        subsampling=(2, 2),
        tile=(tile_px, tile_px) if tile_px else None,
        rowsperstrip=None if tile_px else height,
        description=description,
        subfiletype=subfile,
        metadata=None,
        software=False,
    )


_PROGRAM = "Aperio Image Library v12.0.16 "


def _head(size: tuple[int, int], mpp: float, app_mag: int, identity: Identity) -> str:
    width, height = size
    fields = {
        "AppMag": app_mag,
        "StripeWidth": 2040,
        "ScanScope ID": "PHANTOM",
        "Filename": identity.barcode,
        "Title": identity.patient,
        "Date": identity.date,
        "Time": "09:30:00",
        "User": identity.user,
        "MPP": f"{mpp:.4f}",
        "Barcode": identity.barcode,
        "OriginalWidth": width,
        "OriginalHeight": height,
    }
    geometry = f"{width}x{height} [0,0 {width}x{height}] ({TILE_PX}x{TILE_PX}) JPEG/YCC Q={QUALITY}"
    return f"{_PROGRAM}\n{geometry}" + "".join(f"|{key} = {value}" for key, value in fields.items())


def _reduced(head: str, size_level0: tuple[int, int], size: tuple[int, int], mark: str) -> str:
    _, _, fields = head.partition("|")
    how = mark or f" ({TILE_PX}x{TILE_PX}) JPEG/YCC Q={QUALITY}"
    return f"{_PROGRAM}\n{size_level0[0]}x{size_level0[1]} -> {size[0]}x{size[1]}{how}|{fields}"


def _jpeg(rgb: NDArray[np.uint8]) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(rgb), quality=QUALITY, colorspace="RGB", colorsubsampling="420"
    )
    return data


def _tiles_of(strip: NDArray[np.uint8]) -> Iterator[bytes]:
    """The JPEG tiles of a strip (at most 256, W, 3); tiles that stand over the edge repeat its last pixels."""
    for x in range(0, strip.shape[1], TILE_PX):
        tile = strip[:, x : x + TILE_PX]
        over_y, over_x = TILE_PX - tile.shape[0], TILE_PX - tile.shape[1]
        yield _jpeg(np.pad(tile, ((0, over_y), (0, over_x), (0, 0)), mode="edge") if over_y or over_x else tile)


def _shrunk(rows: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Mean of blocks of `step` x `step` px; px that fill no block are left out."""
    height, width = rows.shape[0] // step, rows.shape[1] // step
    block = np.ascontiguousarray(rows[: height * step, : width * step])
    return np.asarray(cv2.resize(block, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _encode(strips: Iterable[NDArray[np.uint8]], size: tuple[int, int], coarser: "_Level") -> Iterator[bytes]:
    top = 0
    for strip in strips:
        height = min(TILE_PX, size[1] - top)
        if strip.shape != (height, size[0], 3):
            raise ValueError(f"the strip at row {top} has shape {strip.shape}, not {(height, size[0], 3)}")
        coarser.take(_shrunk(strip, _STEP))
        yield from _tiles_of(strip)
        top += height
        del strip  # before the next one is made
    if top != size[1]:
        raise ValueError(f"the strips end at row {top} of {size[1]}")


@dataclass
class _Thumbnail:
    """Collects rows of level 16, shrunk by a whole number so that the longer side is at most 1,024 px."""

    size_px: tuple[int, int]
    kept: list[NDArray[np.uint8]] = field(default_factory=list)
    waiting: list[NDArray[np.uint8]] = field(default_factory=list)

    def take(self, rows: NDArray[np.uint8]) -> None:
        step = -(-max(self.size_px) // _THUMBNAIL_PX)
        rows = np.concatenate([*self.waiting, rows])
        full = rows.shape[0] // step * step
        self.waiting = [rows[full:]]
        if full:
            self.kept.append(_shrunk(rows[:full], step))

    def rgb(self) -> NDArray[np.uint8]:
        return np.concatenate(self.kept)


@dataclass
class _Level:
    """A coarser level: collects rows, keeps JPEG tiles in a temporary file, hands strips on."""

    size_px: tuple[int, int]
    spool: IO[bytes]
    hand_on: Callable[[NDArray[np.uint8]], None]
    rows_done: int = 0
    waiting: list[NDArray[np.uint8]] = field(default_factory=list)

    def take(self, rows: NDArray[np.uint8]) -> None:
        """Takes the next rows, at most a strip of them; a full strip (256, W, 3) is compressed and handed on."""
        strip = np.concatenate([*self.waiting, rows])
        self.waiting = [strip]
        if strip.shape[0] < TILE_PX and self.rows_done + strip.shape[0] < self.size_px[1]:
            return
        strip, self.waiting = strip[:TILE_PX], [strip[TILE_PX:]]
        for jpeg in _tiles_of(strip):
            self.spool.write(_LENGTH.pack(len(jpeg)) + jpeg)
        self.rows_done += strip.shape[0]
        self.hand_on(strip)

    def tiles(self) -> Iterator[bytes]:
        """All tiles, row by row."""
        self.spool.seek(0)
        while length := self.spool.read(_LENGTH.size):
            yield self.spool.read(_LENGTH.unpack(length)[0])
