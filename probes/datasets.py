"""Sets of labelled cells, read into memory: the public ones, and one's own in folders, VOC boxes or a csv.

What a layout lists (folders.py, voc.py, listed.py) is read here, the same way for all: a picture that cannot be read is
left out and recorded.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from papsmear.errors import UsageError
from papsmear.probes.classes import SETS, CellClass, PublicSet, Side
from papsmear.probes.folders import find_plain, find_public
from papsmear.probes.listed import find_listed
from papsmear.probes.sources import Listed, MaskFile, SetSource, classes_of, kind_of
from papsmear.probes.voc import find_boxes, square
from papsmear.progress import track


@dataclass(frozen=True)
class CellSet:
    """A set read into memory, ordered by class, then by path.

    `images`: N pictures (H, W, 3) uint8, each in its own size. `labels` (N,) counts through `classes`, which holds only
    the classes that were found. `damaged`: why an image could not be read, by its path within the set's folder.

    What is told of each image, each empty where it is of none: `masks`, its mask's file or files; `groups`, its source
    picture, slide or patient; `slides` and `folds`, of in-house cells; `mpp`, µm/px. None, and "", where not known.
    """

    name: str
    classes: tuple[CellClass, ...]
    paths: tuple[str, ...]
    images: tuple[NDArray[np.uint8], ...]
    labels: NDArray[np.int64]
    damaged: dict[str, str]
    masks: tuple[MaskFile | None, ...] = ()
    groups: tuple[str, ...] = ()
    slides: tuple[str, ...] = ()
    folds: tuple[int | None, ...] = ()
    mpp: tuple[float | None, ...] = ()

    @property
    def title(self) -> str:
        return SETS[self.name].title if self.name in SETS else self.name

    @property
    def published_cells(self) -> int | None:
        """The number of cells of the public set; None for a set of one's own."""
        return sum(SETS[self.name].cells) if self.name in SETS else None

    def counts(self) -> list[int]:
        """The number of images of each class."""
        return [int((self.labels == label).sum()) for label in range(len(self.classes))]

    def subset(self, kept: Sequence[int]) -> "CellSet":
        """The images of these indices alone."""
        of_each = ("paths", "images", "masks", "groups", "slides", "folds", "mpp")
        told = {name: values for name in of_each if (values := getattr(self, name))}
        chosen: dict[str, Any] = {name: tuple(values[i] for i in kept) for name, values in told.items()}
        return replace(self, labels=self.labels[np.asarray(kept, int)], **chosen)


def masks_of(cells: CellSet) -> tuple[MaskFile, ...]:
    """The mask of every image; UsageError where one has none."""
    masks = [mask for mask in cells.masks if mask is not None]
    if len(masks) < len(cells.labels):
        known = cells.masks or (None,) * len(cells.paths)
        without = [path for path, mask in zip(cells.paths, known, strict=True) if not mask]
        of = SETS.get(cells.name, SETS["herlev"])
        raise UsageError(
            f"{cells.title}: {len(without)} of {len(cells.labels)} images have no mask, such as {without[0]}; "
            f"take a set with its masks, as {of.title}'s archive has them ({of.masks} beside the picture <name>)"
        )
    return tuple(masks)


def read_cells(name: str, source: SetSource | Path) -> CellSet:
    """Reads the set `name` to be probed; an unreadable image is left out and recorded.

    Raises UsageError where there is no such set, one class only, or a class with fewer than two images, since none of
    these can be split into a training and a test part.
    """
    cells = read_set(name, source)
    _check(cells, source.path if isinstance(source, SetSource) else source)
    return cells


def read_set(name: str, source: SetSource | Path) -> CellSet:
    """Reads the set `name` as it is, if of one class only; UsageError where there is none."""
    if isinstance(source, Path):
        source = SetSource(source)
    if not source.path.exists():
        what = "file" if source.path.suffix else "folder"
        raise UsageError(f"{source.path}: no such {what}; the set {name} wants {_wanted(name)}")
    damaged: dict[str, str] = {}
    classes, listed = _listed(name, source, damaged)
    base = source.path if source.path.is_dir() else source.path.parent
    label_of = {cell.class_name: _label(cell.class_name, classes) for cell in listed}
    listed.sort(key=lambda cell: (cell.path, cell.number))
    read = list(_read(listed, base, f"{SETS[name].title if name in SETS else name}: reading", damaged))
    read.sort(key=lambda entry: label_of[entry[0].class_name])
    present = sorted({label_of[cell.class_name] for cell, _ in read})
    cells = [cell for cell, _ in read]
    images = tuple(image for _, image in read)
    return CellSet(
        name,
        tuple(classes[label] for label in present),
        tuple(_path_in(cell, base) for cell in cells),
        images,
        np.array([present.index(label_of[cell.class_name]) for cell in cells], dtype=np.int64),
        damaged,
        masks=tuple(cell.mask for cell in cells),
        groups=tuple(cell.group for cell in cells) if any(cell.group for cell in cells) else (),
        slides=tuple(cell.slide_id for cell in cells) if any(cell.slide_id for cell in cells) else (),
        folds=tuple(cell.fold for cell in cells) if any(cell.fold is not None for cell in cells) else (),
        mpp=_mpp(cells, images, source, SETS.get(name)),
    )


def _listed(name: str, source: SetSource, damaged: dict[str, str]) -> tuple[tuple[CellClass, ...], list[Listed]]:
    """The classes that a set can have, and its cells."""
    public = SETS.get(name)
    if public and (source.classes or source.kind not in (None, public.kind)):
        raise UsageError(f"{name}: {public.title} has its own classes and layout; call your set otherwise")
    kind = public.kind if public else source.kind or kind_of(source.path)
    told: dict[str, Side] = {}
    if kind == "csv":
        cells, told = find_listed(source.path)
    elif kind == "voc":
        cells = find_boxes(source.path, damaged, public.picture) if public else find_boxes(source.path, damaged)
    else:
        cells = find_public(public, source.path) if public else find_plain(source.path)
    if public:
        return public.classes, cells
    return classes_of(source.path, {cell.class_name for cell in cells}, source.classes, told), cells


def _label(class_name: str, classes: tuple[CellClass, ...]) -> int:
    """Its place among `classes`; by its name as it is, since a public class's own may be no folder's."""
    names = [c.name for c in classes]
    if class_name in names:
        return names.index(class_name)
    return next(label for label, c in enumerate(classes) if c.is_called(class_name))


def _read(
    listed: list[Listed], base: Path, what: str, damaged: dict[str, str]
) -> Iterator[tuple[Listed, NDArray[np.uint8]]]:
    """The cells that can be read, with their pictures; a picture of many cells is read once."""
    for path, cells in groupby(track(listed, what), lambda cell: cell.path):
        try:
            picture = read_rgb(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            damaged[_relative(path, base)] = _reason(error, path)
            continue
        for cell in cells:
            if cell.box is None:
                yield cell, picture
                continue
            try:
                rows, columns = square(cell.box, picture.shape[1], picture.shape[0])
            except ValueError as error:
                damaged[_path_in(cell, base)] = str(error)
                continue
            yield cell, picture[rows, columns].copy()


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """An image file as (H, W, 3) uint8 RGB: grey is repeated, transparent lies on white, 16 bits become 8."""
    with Image.open(path) as file:
        image = file.copy()
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _path_in(cell: Listed, base: Path) -> str:
    return _relative(cell.path, base) + ("" if cell.box is None else f"#{cell.number}")


def _relative(path: Path, base: Path) -> str:
    """A path within the set; of one that lies elsewhere only its end, since reports name no folders of the machine."""
    return (path.relative_to(base) if path.is_relative_to(base) else Path(*path.parts[-2:])).as_posix()


def _mpp(
    cells: list[Listed], images: tuple[NDArray[np.uint8], ...], source: SetSource, public: PublicSet | None
) -> tuple[float | None, ...]:
    """µm/px of each image: its own, else the source's, else the public set's.

    A copy of a public set whose images are all of one size was resized cell by cell, so its µm/px are lost.
    """
    of_set = source.mpp
    if of_set is None and public and len({image.shape for image in images}) > 1:
        of_set = public.mpp
    known = tuple(of_set if cell.mpp is None else cell.mpp for cell in cells)
    return known if any(mpp is not None for mpp in known) else ()


def _wanted(name: str) -> str:
    return f"the folder of the unpacked {SETS[name].title} set" if name in SETS else "a folder or a csv"


def _reason(error: Exception, path: Path) -> str:
    if not path.exists():
        return "no such file"
    if path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


def _check(cells: CellSet, folder: Path) -> None:
    lost = f" ({len(cells.damaged)} could not be read)" if cells.damaged else ""
    counts = Counter({c.name: n for c, n in zip(cells.classes, cells.counts(), strict=True)})
    if not counts:
        raise UsageError(f"{folder}: none of its images could be read: {next(iter(cells.damaged.values()))}")
    if len(counts) < 2:
        raise UsageError(
            f"{folder}: only the class {next(iter(counts))!r} is in it; a probe wants at least two classes"
        )
    few = [f"{name!r} has {n}" for name, n in counts.items() if n < 2]
    if few:
        raise UsageError(
            f"{folder}: {', '.join(few)} readable image(s){lost}; "
            "a class wants at least two, one to learn from and one to test on"
        )
