"""libjpeg-turbo, asked for what no Python package gives: the channels of a JPEG, decoded small, into strided memory.

A scaled decode leaves out the high frequencies before the inverse transform, so half the size costs about half the
time and is nearer to the mean of 2 x 2 pixels than any filter afterwards. The channels come as they are stored (YCbCr
with its subsampled colours, or RGB), so nothing is converted that would be converted back for the next JPEG. The
TurboJPEG functions of version 2, which version 3 still has, are called through ctypes; they let other threads run.
"""

import ctypes
import ctypes.util
import importlib.metadata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

SCALES = (1, 2, 4, 8)  # at which the library decodes with its fast transforms
SUBSAMPLINGS = {0: (1, 1), 1: (2, 1), 2: (2, 2)}  # TJSAMP_444, _422, _420: pixels (x, y) of a colour sample
REMEDY = "install the package turbojpeg (pip) or libturbojpeg0 (Debian, Ubuntu)"
HARMLESS = "extraneous bytes before marker"  # a warning of libjpeg about what is no part of the picture


class JpegError(Exception):
    """The library's own words on a stream that it cannot decode."""


def _candidates() -> Iterator[str]:
    """Files that may be the library: that of the wheel of `turbojpeg`, then the system's."""
    try:
        files = importlib.metadata.files("turbojpeg") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    yield from (str(Path(str(file.locate()))) for file in files if file.name.startswith(("libturbojpeg", "turbojpeg-")))
    if system := ctypes.util.find_library("turbojpeg"):
        yield system


@lru_cache
def library() -> Any | None:
    """The library with its functions declared; None where there is none."""
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    numbers, pointers = ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_void_p)
    declared: dict[str, tuple[Any, list[Any]]] = {
        "tjInitDecompress": (pointer, []),
        "tjDestroy": (number, [pointer]),
        "tjGetErrorStr2": (text, [pointer]),
        "tjDecompressHeader3": (number, [pointer, text, ctypes.c_ulong, numbers, numbers, numbers, numbers]),
        "tjDecompressToYUVPlanes": (
            number, [pointer, text, ctypes.c_ulong, pointers, number, numbers, number, number]
        ),
    }  # fmt: skip
    for file in _candidates():
        try:
            found = ctypes.CDLL(file)
            for name, (result, arguments) in declared.items():
                function = getattr(found, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError):
            continue
        return found
    return None


class Decoder:
    """One decoder of `library()`, which must be there; reused for all JPEGs of a slide, by one thread at a time."""

    def __init__(self) -> None:
        there: Any = library()
        self._library = there
        self._handle = there.tjInitDecompress()
        self._decode = there.tjDecompressToYUVPlanes
        self._pointers = (ctypes.c_void_p * 3)()
        self._strides = (ctypes.c_int * 3)()

    def header(self, jpeg: bytes) -> tuple[int, int, int]:
        """(width, height, TJSAMP number) of a JPEG."""
        found = [ctypes.c_int() for _ in range(4)]
        if self._library.tjDecompressHeader3(self._handle, jpeg, len(jpeg), *map(ctypes.byref, found)):
            raise JpegError(self._problem())
        return found[0].value, found[1].value, found[2].value

    def decode(
        self, jpeg: bytes, size_px: tuple[int, int], addresses: tuple[int, int, int], strides: tuple[int, int]
    ) -> None:
        """Decodes at the scale of `size_px` (width, height) into memory: where the channels begin, and bytes a row.

        The first of `strides` is that of the first channel, the second that of the two others.

        JpegError where the stream is damaged or cut short.
        """
        pointers, rows = self._pointers, self._strides
        pointers[0], pointers[1], pointers[2] = addresses
        rows[0], rows[1], rows[2] = strides[0], strides[1], strides[1]
        width, height = size_px
        if self._decode(self._handle, jpeg, len(jpeg), pointers, width, rows, height, 0):
            problem = self._problem()
            if HARMLESS not in problem:
                raise JpegError(problem)

    def _problem(self) -> str:
        return str(self._library.tjGetErrorStr2(self._handle).decode(errors="replace")).strip()

    def close(self) -> None:
        """Gives the decoder's memory back."""
        if self._handle:
            self._library.tjDestroy(self._handle)
            self._handle = None
