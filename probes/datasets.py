"""The public single-cell sets, as their archives unpack and as they are found in copies.

Herlev: `<class>/<name>.BMP` with the mask `<name>-d.bmp` beside it, or `images/<class>/<name>.jpg` with the masks in a
folder tree of their own. SIPaKMeD: `im_<class>/im_<class>/CROPPED/*.bmp`, where the pictures one folder up are whole
fields of view, not cells. Folders may lie deeper, and their names may differ in capitals, spaces and spelling.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from papsmear.errors import UsageError
from papsmear.probes.classes import CLASSES, PUBLISHED_CELLS, TITLES, CellClass
from papsmear.progress import track

_SUFFIXES = {".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff"}
_MASK_TREES = ("mask", "masks")


@dataclass(frozen=True)
class CellSet:
    """A set read into memory, ordered by class, then by path.

    `images`: N pictures (H, W, 3) uint8, each in its own size. `labels` (N,) counts through `classes`, which holds only
    the classes that were found. `damaged`: why an image could not be read, by its path within the set's folder.
    `masks`: the file of each image's mask, None where it has none; empty for a set that was not read from files.
    """

    name: str
    classes: tuple[CellClass, ...]
    paths: tuple[str, ...]
    images: tuple[NDArray[np.uint8], ...]
    labels: NDArray[np.int64]
    damaged: dict[str, str]
    masks: tuple[Path | None, ...] = ()

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def published_cells(self) -> int:
        """The number of cells of the public set."""
        return PUBLISHED_CELLS[self.name]

    def counts(self) -> list[int]:
        """The number of images of each class."""
        return [int((self.labels == label).sum()) for label in range(len(self.classes))]


def masks_of(cells: CellSet) -> tuple[Path, ...]:
    """The mask of every image; UsageError where one has none."""
    masks = [mask for mask in cells.masks if mask is not None]
    if len(masks) < len(cells.labels):
        without = [
            path for path, mask in zip(cells.paths, cells.masks or (None,) * len(cells.paths), strict=True) if not mask
        ]
        raise UsageError(
            f"{cells.title}: {len(without)} of {len(cells.labels)} images have no mask, such as {without[0]}; "
            "take a set with its masks, as Herlev's archive has them (<name>-d.bmp beside <name>.BMP)"
        )
    return tuple(masks)


def read_cells(name: str, folder: Path) -> CellSet:
    """Reads the set `name` (`herlev` or `sipakmed`) from `folder`; an unreadable image is left out and recorded.

    Raises UsageError where the folder holds no such set, one class only, or a class with fewer than two images, since
    none of these can be split into a training and a test part.
    """
    found = _image_files(name, folder)
    classes = tuple(c for c in CLASSES[name] if found.get(c.name))
    files = [(label, path) for label, c in enumerate(classes) for path in found[c.name]]
    mask_of = _masks_in(folder)
    images, labels, paths, masks, damaged = [], [], [], [], {}
    for label, path in track(files, f"{TITLES[name]}: reading"):
        relative = path.relative_to(folder).as_posix()
        try:
            images.append(read_rgb(path))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            damaged[relative] = _reason(error, path)
            continue
        labels.append(label)
        paths.append(relative)
        masks.append(mask_of.get((path.parent.name.lower(), path.stem.lower())))
    cells = CellSet(name, classes, tuple(paths), tuple(images), np.array(labels, dtype=np.int64), damaged, tuple(masks))
    _check(cells, folder)
    return cells


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


def _image_files(name: str, folder: Path) -> dict[str, list[Path]]:
    """The image files of each class, sorted; masks left out."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; --sets.{name} wants the folder of the unpacked {TITLES[name]} set")
    found: dict[str, list[Path]] = {}
    for cell_class in CLASSES[name]:
        homes = [top for top in _class_folders(folder, cell_class.folder) if _cells_in(top)]
        if len(homes) > 1:
            listed = ", ".join(home.relative_to(folder).as_posix() for home in homes)
            raise UsageError(
                f"{folder}: several folders for the class {cell_class.name!r} ({listed}); "
                "give the folder that holds the set once"
            )
        if homes:
            found[cell_class.name] = _cells_in(homes[0])
    if not found:
        example = "carcinoma_in_situ" if name == "herlev" else "im_Dyskeratotic"
        raise UsageError(f"{folder}: no images of {TITLES[name]} in it; it wants class folders such as {example}/")
    return found


def _class_folders(folder: Path, pattern: str) -> list[Path]:
    """The topmost folders below `folder` whose name is the class's, outside trees of masks."""
    tops: list[Path] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_dir()):
        inside = path.relative_to(folder).parts
        letters = re.sub(r"[^a-z]", "", path.name.lower())
        if any(part.lower() in _MASK_TREES for part in inside) or any(top in path.parents for top in tops):
            continue
        if re.fullmatch(pattern, letters):
            tops.append(path)
    return tops


def _cells_in(top: Path) -> list[Path]:
    """The cell pictures in a class folder: those in CROPPED where there is one, else in it or its namesake inside."""
    below = [p for p in top.rglob("*") if p.is_dir()]
    cropped = [p for p in below if p.name.lower() == "cropped"]
    homes = cropped or [top, *(p for p in below if p.name.lower() == top.name.lower())]
    files = {file for home in homes for file in home.iterdir() if file.suffix.lower() in _SUFFIXES}
    return sorted(f for f in files if not f.stem.lower().endswith("-d") and not f.name.startswith("."))


def _masks_in(folder: Path) -> dict[tuple[str, str], Path]:
    """Masks by their class folder's and their image's name, in small letters: `<name>-d`, or in a tree of masks."""
    found = {}
    for path in sorted(folder.rglob("*")):
        in_tree = any(part.lower() in _MASK_TREES for part in path.relative_to(folder).parts[:-1])
        if path.suffix.lower() in _SUFFIXES and (in_tree or path.stem.lower().endswith("-d")):
            found[path.parent.name.lower(), path.stem.lower().removesuffix("-d")] = path
    return found


def _reason(error: Exception, path: Path) -> str:
    if path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


def _check(cells: CellSet, folder: Path) -> None:
    lost = f" ({len(cells.damaged)} could not be read)" if cells.damaged else ""
    counts = Counter({c.name: n for c, n in zip(cells.classes, cells.counts(), strict=True)})
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
