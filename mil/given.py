"""Which slides are meant by the files and folders that are given: a file is one, and a folder may hold many.

The instances of a DICOM slide lie in a folder of their own, which is then one slide; more than one series of them in a
folder are as many slides. Other files of a folder are slides by the endings of the formats that OpenSlide reads.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from papsmear.cohort import Slide
from papsmear.errors import UsageError
from papsmear.tiling.dicom import is_dicom, series_of

ENDINGS = {
    ".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi",
}  # fmt: skip


def find_slides(paths: Sequence[Path], mpp: float | None = None) -> list[Slide]:
    """The slides in their order, by ids that their names give.

    UsageError that lists all that is wrong: what is missing, folders without slides, and slides of the same id.
    """
    slides: dict[str, Slide] = {}
    problems = []
    for path in paths:
        if not path.exists():
            problems.append(f"{path}: no such file or folder")
            continue
        found = list(_slides_in(path)) if path.is_dir() else [path]
        if not found:
            problems.append(f"{path}: no slide in the folder; a DICOM file, or one of {', '.join(sorted(ENDINGS))}, is")
        for file in found:
            slide_id = _id_of(file)
            other = slides.setdefault(slide_id, Slide(slide_id, file, None, slide_id, None, "", mpp, None, {}))
            if other.path != file:
                problems.append(f"{file} and {other.path} would both be slide {slide_id!r}; rename one of them")
    if problems:
        raise UsageError("; ".join(problems))
    return list(slides.values())


def _id_of(path: Path) -> str:
    name = path.resolve().name if path.is_dir() else path.stem
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "slide"


def _slides_in(folder: Path) -> Iterator[Path]:
    """The slides of a folder and of the folders in it: the folder itself where it is a DICOM slide."""
    there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in there if path.is_file()]
    dicom = [file for file in files if is_dicom(file)]
    series = {series_of(file): file for file in reversed(dicom)}  # the first file of each
    known = [file for uid, file in series.items() if uid is not None]
    if dicom:
        yield from sorted(known) if len(known) > 1 else [folder]
    yield from (file for file in files if file.suffix.lower() in ENDINGS and file not in dicom)
    for path in there:
        if path.is_dir():
            yield from _slides_in(path)
