"""Sets of boxed cells: pictures and PASCAL VOC annotations, as HMCHH-TCT-CellDet has them.

An XML file belongs to the picture of the same name, wherever in the folder both lie. Each box is a cell, cut out as a
square around it, since encoders take squares. Files are called `<patient>_<image>`; the patient is the cells' group.
What is not boxed is not labelled: it gives no negative cells.
"""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

from papsmear.errors import UsageError
from papsmear.probes.sources import SUFFIXES, Box, Listed


def find_boxes(folder: Path, damaged: dict[str, str], picture: str = "(.+)_[^_]+") -> list[Listed]:
    """The boxed cells below `folder`; what cannot be used goes into `damaged`, by its path there, with its reason.

    `picture`: a regular expression whose first group is the patient in the name of a file.
    """
    pictures: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            pictures[path.stem].append(path)
    found: list[Listed] = []
    for xml in sorted(path for path in folder.rglob("*.xml") if not path.name.startswith(".")):
        name = xml.relative_to(folder).as_posix()
        try:
            objects = ElementTree.parse(xml).getroot().findall("object")
        except (ElementTree.ParseError, OSError) as error:
            damaged[name] = f"not an XML file: {error}"
            continue
        if len(pictures[xml.stem]) != 1:
            damaged[name] = f"there are {len(pictures[xml.stem])} pictures called {xml.stem}"
            continue
        told = re.fullmatch(picture, xml.stem)
        for number, element in enumerate(objects):
            try:
                box = _box(element)
            except (TypeError, ValueError):
                damaged[f"{name}#{number}"] = "its box is no left, top, right and bottom edge"
                continue
            class_name = (element.findtext("name") or "").strip()
            group = told[1] if told else xml.stem
            found.append(Listed(pictures[xml.stem][0], class_name, box, number, group=group))
    if not found:
        raise UsageError(f"{folder}: no boxed cells in it; it wants VOC annotations (*.xml) and their pictures")
    return found


def _box(element: ElementTree.Element) -> Box:
    """VOC counts pixels from 1, and both edges are inside."""
    edges = [float(element.findtext(f"bndbox/{edge}") or "none") for edge in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = edges
    if not (all(map(math.isfinite, edges)) and left < right and top < bottom):
        raise ValueError
    return round(left) - 1, round(top) - 1, round(right), round(bottom)


def square(box: Box, width: int, height: int) -> tuple[slice, slice]:
    """Rows and columns of the square around a box in a picture of `width` x `height` px, moved onto it at its edges.

    ValueError where the box's centre lies outside the picture.
    """
    left, top, right, bottom = box
    x, y = (left + right) / 2, (top + bottom) / 2
    if not (0 <= x <= width and 0 <= y <= height):
        raise ValueError(f"its box is outside the picture of {width} x {height} px")
    side = min(max(right - left, bottom - top), width, height)
    first_x, first_y = (
        min(max(round(centre - side / 2), 0), length - side) for centre, length in ((x, width), (y, height))
    )
    return slice(first_y, first_y + side), slice(first_x, first_x + side)
