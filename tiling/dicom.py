"""DICOM slides with several focal planes, read by wsidicom.

OpenSlide refuses such slides, or shows one of the planes where the file does not count them; with a single plane it
stays the reader. The planes may lie in one instance (TILED_FULL in the order of their depth, TILED_SPARSE with a depth
for each tile) or in one instance each, and every level is an instance again. Importing wsidicom takes a second, so
that is left until a DICOM file is there.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from papsmear.errors import InputError
from papsmear.tiling.source import exact_downsamples

if TYPE_CHECKING:
    from wsidicom import WsiDicom

_WHOLE_SLIDE_IMAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_SERIES = 0x0020000E  # the tag SeriesInstanceUID
_CACHE_BYTES = 32 << 20  # of decoded tiles, in each plane


def dicom_planes(path: Path) -> tuple[float, ...]:
    """µm of each focal plane of a DICOM slide (its folder or any file in it), from the lowest up.

    Empty where `path` is something else or cannot be read at all: OpenSlide then says what is wrong. InputError where
    there are planes but not how far apart.
    """
    files = instances(path)
    if not files:
        return ()
    try:
        slide = _opened(files)
    except Exception:  # wsidicom's errors have no class in common
        return ()
    with slide:
        try:
            return tuple(map(float, slide.pyramid.base_level.focal_planes))
        except ValueError as error:
            raise InputError(f"{path}: its focal planes cannot be told apart ({error}); export it again") from error


class DicomSource:
    """One focal plane of a DICOM slide, the one at `z_um` of `dicom_planes`; see `Source`."""

    engine = "wsidicom"
    format = "dicom"

    def __init__(self, path: Path, z_um: float) -> None:
        files = instances(path)
        self._slide = _opened(files)
        taken = {file.name for file in self._slide.files or ()}
        if lost := [file.name for file in files if file.name not in taken]:
            self._slide.close()
            raise InputError(f"{path}: cannot read {', '.join(lost)} of the DICOM slide; copy it again")
        self.z_um = z_um
        base = self._slide.pyramid.base_level
        spacing_mm = base.default_instance.pixel_spacing
        self.mpp_xy = None if spacing_mm is None else (spacing_mm.width * 1000, spacing_mm.height * 1000)
        planes = set(base.focal_planes)  # a scanner may leave planes out of its coarser levels
        levels = [level for level in self._slide.pyramid if planes <= set(level.focal_planes)]
        self._numbers = [level.level for level in levels]
        self.level_sizes = tuple((level.size.width, level.size.height) for level in levels)
        self.level_downsamples = self.downsamples = exact_downsamples(self.level_sizes)
        self.on_grid = (True,) * len(self.downsamples)

    def region(self, xy_level0: tuple[int, int], at: int, size_px: tuple[int, int]) -> NDArray[np.uint8]:
        """See `Source`."""
        x, y = (round(v / self.downsamples[at]) for v in xy_level0)
        width, height = size_px
        rgb = np.full((height, width, 3), 255, np.uint8)
        left, right = (min(max(v, 0), self.level_sizes[at][0]) for v in (x, x + width))
        top, bottom = (min(max(v, 0), self.level_sizes[at][1]) for v in (y, y + height))
        if right > left and bottom > top:
            size = (right - left, bottom - top)
            try:
                inside = self._slide.read_region((left, top), self._numbers[at], size, self.z_um)
            except Exception as error:  # wsidicom's errors have no class in common, and decoders have their own
                raise InputError(f"plane {self.z_um:g} µm, level {at} at x {left}, y {top}: {error}") from error
            rgb[top - y : bottom - y, left - x : right - x] = np.asarray(inside)[..., :3]
        return rgb

    def close(self) -> None:
        """See `Source`."""
        self._slide.close()


def _opened(files: list[Path]) -> "WsiDicom":
    from wsidicom import WsiDicom
    from wsidicom.config import Settings

    logging.getLogger("wsidicom").setLevel(logging.CRITICAL)  # a file that it cannot read is an error of ours
    settings = Settings(decoded_frame_cache_size=_CACHE_BYTES, encoded_frame_cache_size=_CACHE_BYTES // 8)
    return WsiDicom.open(files, settings=settings)


def instances(path: Path) -> list[Path]:
    """The files of the slide: the whole-slide images of one series, that of `path` or of the folder's first."""
    if path.is_file():
        if not is_dicom(path):
            return []
        folder = path.parent
    elif path.is_dir():
        folder = path
    else:
        return []
    series = {file: series_of(file) for file in sorted(folder.iterdir()) if file.is_file() and is_dicom(file)}
    known = [uid for uid in series.values() if uid is not None]
    wanted = series[path] if path.is_file() else next(iter(known), None)
    return [file for file, uid in series.items() if uid is not None and uid == wanted]


def is_dicom(file: Path) -> bool:
    """Whether the file begins as DICOM does, which needs no import."""
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_of(file: Path) -> str | None:
    """The series that a whole-slide image belongs to; None for other objects and damaged headers."""
    from pydicom.filereader import read_partial

    with file.open("rb") as stream:
        try:
            head = read_partial(stream, stop_when=lambda tag, vr, length: tag > _SERIES)
            if head.file_meta.MediaStorageSOPClassUID != _WHOLE_SLIDE_IMAGE:
                return None
            return str(head.SeriesInstanceUID)
        except Exception:  # whatever a header cut short or overwritten leads to
            return None
