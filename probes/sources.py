"""Where a set is and how it is laid out, and the cells that a layout lists before any picture is read."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from papsmear.errors import UsageError
from papsmear.probes.classes import SIDES, CellClass, Kind, Side, plain
from papsmear.tiling.phantom.outlines import Outlines

SUFFIXES = {".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff"}

Box = tuple[int, int, int, int]  # left, top, right, bottom, px; right and bottom are outside
MaskFile = Path | Outlines  # a picture, or the files of two outlines


@dataclass(frozen=True)
class SetSource:
    """A labelled set of your own: `{path: DIR, classes: {LSIL: positive, NILM: negative, glandular: neither}}`.

    Args:
        path: A folder of class folders, a folder of VOC annotations and their pictures, or a csv.
        kind: folders, voc or csv; told by what lies in path, if not given.
        classes: The side of each class: positive, negative or neither.
        mpp: The pictures' µm/px, for those whose own is not known.
    """

    path: Path
    kind: Kind | None = None
    classes: dict[str, Side] | None = None
    mpp: float | None = None


@dataclass(frozen=True)
class Listed:
    """A cell, not read yet: its picture, its class by the name it has there, and what else the layout tells of it.

    `box`: the part of the picture that is the cell; `group`: its source picture, slide or patient; "" where not told.
    """

    path: Path
    class_name: str
    box: Box | None = None
    number: int = 0
    mask: MaskFile | None = None
    group: str = ""
    slide_id: str = ""
    fold: int | None = None
    mpp: float | None = None


def kind_of(path: Path) -> Kind:
    """How a set is laid out, by what lies at `path`."""
    if path.suffix.lower() == ".csv":
        return "csv"
    return "voc" if path.is_dir() and any(path.rglob("*.xml")) else "folders"


def classes_of(
    path: Path, found: Collection[str], given: Mapping[str, Side] | None, told: Mapping[str, Side]
) -> tuple[CellClass, ...]:
    """The classes of a set of one's own: those given, in their order, else those found, by the side `told` of them.

    UsageError where classes are given, and some that are found are not among them.
    """
    if given is None:
        sides = {class_name: told.get(class_name, "neither") for class_name in sorted(found)}
        ordered = sorted(sides, key=lambda class_name: SIDES.index(sides[class_name]))
        return tuple(CellClass(class_name, class_name, sides[class_name]) for class_name in ordered)
    known = {plain(class_name) for class_name in given}
    if unknown := sorted(class_name for class_name in found if plain(class_name) not in known):
        raise UsageError(
            f"{path}: classes do not tell the side of {', '.join(map(repr, unknown))}; "
            f"add {unknown[0]}: positive, negative or neither"
        )
    return tuple(CellClass(class_name, class_name, side) for class_name, side in given.items())
