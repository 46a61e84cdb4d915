"""The focal planes of a slide: which there are, and one reader for each.

A scanner writes planes into several files, named in slides.csv by the column `z_planes`, or into one DICOM slide. A
slide scanned once is a slide with one plane at z 0, so what cuts tiles knows planes only.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from papsmear.errors import InputError
from papsmear.tiling.dicom import DicomSource, dicom_planes
from papsmear.tiling.reader import Engine, SlideReader, open_slide

Focus = float | Literal["best", "all"]
"""Which planes are wanted: the sharpest for each tile, all of them, or the one at so many µm."""

SAME_Z_UM = 0.01


@dataclass(frozen=True)
class Planes:
    """The open focal planes of one slide, from the lowest `z_um` up; a context manager that closes them."""

    z_um: tuple[float, ...]
    readers: tuple[SlideReader, ...]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for reader in self.readers:
                stack.push(reader)

    @property
    def middle(self) -> SlideReader:
        """The reader of the middle plane, which stands for the slide where one picture of it is enough."""
        return self.readers[(len(self.readers) - 1) // 2]

    def select(self, z: Focus) -> "Planes":
        """The planes that have to be read: the one at `z` µm, or all of them. InputError where there is none at `z`."""
        if isinstance(z, str):
            return self
        for z_um, reader in zip(self.z_um, self.readers, strict=True):
            if abs(z_um - z) <= SAME_Z_UM:
                return Planes((z_um,), (reader,))
        there = ", ".join(f"{z_um:g}" for z_um in self.z_um)
        raise InputError(f"{self.middle.path}: no focal plane at z {z:g} µm; there is {there}; or use best or all")

    def best(self, focus: NDArray[np.float64]) -> NDArray[np.intp]:
        """Which plane is the sharpest on each tile (T,), by the scores `focus` (P, T); of equals the nearest to z 0."""
        by_depth = np.argsort(np.abs(self.z_um), kind="stable")
        planes: NDArray[np.intp] = by_depth[np.argmax(focus[by_depth], axis=0)]
        return planes


def open_planes(path: Path, pattern: str | None = None, mpp: float | None = None, engine: Engine = "auto") -> Planes:
    """Opens all focal planes of a slide; `path`, `mpp` and `engine` are those of `open_slide`.

    `pattern` is the absolute path of the planes' files with `{z}` or `{z:FORMAT}` in place of the µm: /a/1_z{z:+d}.svs
    stands for 1_z-1.svs, 1_z+1.svs and so on. `path` is then the plane at z 0, unless the pattern says another z for
    it. InputError as from `open_slide`, and where the pattern is wrong or the planes do not fit together.
    """
    z_um: tuple[float, ...] = (0.0,)
    with ExitStack() as stack:
        if pattern:
            files = _files(path, pattern)
            z_um = tuple(sorted(files))
            readers = [stack.enter_context(open_slide(files[z], mpp, engine)) for z in z_um]
        elif len(found := dicom_planes(path)) > 1:
            z_um = found
            sources = [stack.enter_context(closing(DicomSource(path, z))) for z in z_um]
            readers = [SlideReader(path, source, mpp) for source in sources]
        else:
            readers = [stack.enter_context(open_slide(path, mpp, engine))]
        for reader in readers[1:]:
            _check_fits(reader, readers[0])
        stack.pop_all()
    return Planes(z_um, tuple(readers))


def _check_fits(plane: SlideReader, first: SlideReader) -> None:
    """InputError where a plane is not of the same size, levels and µm/px as the first."""
    for what, found, wanted in (
        ("the levels' sizes are", plane.level_sizes, first.level_sizes),
        ("the µm/px are", round(plane.mpp, 6), round(first.mpp, 6)),
    ):
        if found != wanted:
            raise InputError(
                f"{plane.path}: not a focal plane of the same scan as {first.path.name}: {what} {found} instead of"
                f" {wanted}; correct the column z_planes"
            )


def _files(path: Path, pattern: str) -> dict[float, Path]:
    """The file of each plane by its µm."""
    files: dict[float, Path] = {}
    for z_um, file in _matches(path, str(Path(pattern))):
        if z_um in files:
            raise InputError(
                f"{path}: two files for the focal plane at z {z_um:g} µm, {files[z_um].name} and {file.name}; move one"
                " away, or correct the column z_planes"
            )
        files[z_um] = file
    if not files:
        raise InputError(f"{path}: no file matches {pattern}; correct the column z_planes, or leave it empty")
    if not any(file.samefile(path) for file in files.values()):
        if 0.0 in files:
            raise InputError(
                f"{path}: two files for the focal plane at z 0 µm, this one and {files[0.0].name}; name the latter in"
                " the column path"
            )
        files[0.0] = path
    return files


def _matches(path: Path, pattern: str) -> Iterator[tuple[float, Path]]:
    """Each file or folder that the pattern stands for, with its µm, in the order of their names."""
    parts = re.split(r"\{z(?::([^{}]*))?\}", pattern)
    if len(parts) != 3:
        raise InputError(
            f"{path}: the column z_planes needs {{z}} once, in place of the µm, such as a_z{{z:+d}}.svs; it gives"
            f" {pattern}"
        )
    before, form, after = parts
    root = Path(pattern).anchor
    number = re.compile(re.escape(before) + r"([+-]?\d+(?:\.\d+)?)" + re.escape(after))
    for file in sorted(Path(root).glob(f"{escape(before)}*{escape(after)}"[len(root) :])):
        match = number.fullmatch(str(file))
        if match and (not form or _formats_as(match[1], form)):
            yield float(match[1]) + 0.0, file  # no -0.0


def _formats_as(text: str, form: str) -> bool:
    """Whether the format writes the number so: by `+d`, the 10 of a10.svs is no z but belongs to another slide."""
    z_um = float(text)
    try:
        return text == format(int(z_um) if z_um.is_integer() else z_um, form)
    except ValueError:
        return False
