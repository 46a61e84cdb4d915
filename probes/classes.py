"""Classes of cells, and the public sets that have them. Data, not code: a public set is a file of probes/sets.

A class has a name, a short name as in the study's tables, and a side: what it means for a diagnosis. A class that is
`neither` is left out of the binary scores (in the study's first version, metaplastic cells).
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

Side = Literal["positive", "negative", "neither"]
Kind = Literal["folders", "voc", "csv"]

SIDES: tuple[Side, ...] = ("positive", "negative", "neither")


@dataclass(frozen=True)
class CellClass:
    """One class. `folder` is a regular expression for its folder's name, taken in small letters and letters only.

    Without `folder` it goes by its own name, whatever the capitals, spaces, `-` and `_`.
    """

    name: str
    short: str
    side: Side
    folder: str = ""

    def is_called(self, name: str) -> bool:
        """Whether a folder, or a class in a file, of this name is this class."""
        if self.folder:
            return re.fullmatch(self.folder, re.sub(r"[^a-z]", "", name.lower())) is not None
        return plain(name) == plain(self.name)


def plain(name: str) -> str:
    """A class's name without capitals, spaces and signs."""
    return re.sub(r"[\W_]", "", name.casefold())


@dataclass(frozen=True)
class PublicSet:
    """What is known of a public set, from probes/sets/<name>.yaml.

    `cells`: how many the set has of each class. `mpp`: µm/px as published. `picture`: a regular expression whose first
    group is the source picture, or patient, in the name of a cell's file; `pictures_of_class`: where each class counts
    them for itself. `outlines`: how the files of outlines beside a cell's picture end, of the whole `cell` and of its
    `nucleus`, where the masks of the set are such; else they are pictures, `<name>-d`.
    """

    title: str
    source: str
    kind: Kind
    classes: tuple[CellClass, ...]
    cells: tuple[int, ...]
    mpp: float | None
    picture: str
    pictures_of_class: bool = False
    outlines: dict[str, str] = field(default_factory=dict)

    @property
    def masks(self) -> str:
        """What the masks of a picture <name> are called."""
        return " and ".join(f"<name>{ending}" for ending in self.outlines.values()) or "<name>-d.bmp"

    @classmethod
    def from_yaml(cls, file: Path) -> "PublicSet":
        """The set that a file describes."""
        told: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        rows = told.pop("classes")
        cells = tuple(row.pop("cells") for row in rows)
        return cls(classes=tuple(CellClass(**row) for row in rows), cells=cells, **told)


SETS = {file.stem: PublicSet.from_yaml(file) for file in sorted((Path(__file__).parent / "sets").glob("*.yaml"))}
CLASSES = {name: known.classes for name, known in SETS.items()}
TITLES = {name: known.title for name, known in SETS.items()}
HERLEV, SIPAKMED = CLASSES["herlev"], CLASSES["sipakmed"]
