"""A BigTIFF file of ready-made JPEG streams, written front to back.

tifffile writes JPEG pages only with imagecodecs beside it, even where the streams are already there; what is needed
is small: a header, the streams of each page, and after them the page's directory.
"""

import struct
from array import array
from collections.abc import Iterable
from types import TracebackType
from typing import BinaryIO, Self

_ASCII, _SHORT, _LONG, _LONG8 = 2, 3, 4, 16
_SIZE_AND_CODE = {_ASCII: (1, "s"), _SHORT: (2, "H"), _LONG: (4, "I"), _LONG8: (8, "Q")}
_JPEG, _YCBCR = 7, 6

Tag = tuple[int, int, Iterable[int] | bytes]


class BigTiffWriter:
    """Appends pages of JPEG streams (YCbCr 4:2:0, complete streams with their own tables) to a new BigTIFF file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        self._pointer = 8  # where the offset of the next directory is to be written

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def page(
        self, size_px: tuple[int, int], jpegs: Iterable[bytes], description: str, tile_px: int = 0, subfile: int = 0
    ) -> None:
        """Writes one page.

        Args:
            size_px: Width and height.
            jpegs: The tiles, row by row, each `tile_px` square; or one stream for the whole page.
            description: ASCII text for ImageDescription.
            tile_px: Side of the tiles; 0 for a page in one piece.
            subfile: NewSubfileType; 1 marks a reduced image.
        """
        width, height = size_px
        offsets, counts = array("Q"), array("Q")
        for jpeg in jpegs:
            offsets.append(self._file.tell())
            counts.append(len(jpeg))
            self._file.write(jpeg)
        tags: list[Tag] = [
            (254, _LONG, [subfile]),
            (256, _LONG, [width]),
            (257, _LONG, [height]),
            (258, _SHORT, [8, 8, 8]),
            (259, _SHORT, [_JPEG]),
            (262, _SHORT, [_YCBCR]),
            (270, _ASCII, description.encode("ascii") + b"\0"),
            (277, _SHORT, [3]),
            (284, _SHORT, [1]),
            (530, _SHORT, [2, 2]),
        ]
        if tile_px:
            tags += [(322, _LONG, [tile_px]), (323, _LONG, [tile_px]), (324, _LONG8, offsets), (325, _LONG, counts)]
        else:
            tags += [(273, _LONG8, offsets), (278, _LONG, [height]), (279, _LONG, counts)]
        self._directory(sorted(tags, key=lambda tag: tag[0]))

    def _directory(self, tags: list[Tag]) -> None:
        entries = [self._entry(*tag) for tag in tags]
        self._align()
        start = self._file.tell()
        self._file.write(struct.pack("<Q", len(entries)) + b"".join(entries) + bytes(8))
        end = self._file.tell()
        self._file.seek(self._pointer)
        self._file.write(struct.pack("<Q", start))
        self._file.seek(end)
        self._pointer = end - 8

    def _entry(self, code: int, kind: int, value: Iterable[int] | bytes) -> bytes:
        """The 20 bytes of a directory's entry; what does not fit in 8 of them is written to the file here."""
        size, letter = _SIZE_AND_CODE[kind]
        data = value if isinstance(value, bytes) else b"".join(struct.pack(f"<{letter}", v) for v in value)
        count = len(data) // size
        if len(data) > 8:
            self._align()
            place = struct.pack("<Q", self._file.tell())
            self._file.write(data)
            data = place
        return struct.pack("<HHQ", code, kind, count) + data.ljust(8, b"\0")

    def _align(self) -> None:
        self._file.write(bytes(-self._file.tell() % 8))
