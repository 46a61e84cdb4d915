"""`papsmear data`: what a folder of labelled cells holds, and whether it is what it should be, before it is probed."""

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from papsmear.errors import InputError
from papsmear.probes.classes import SETS, Kind, Side
from papsmear.probes.datasets import CellSet, read_set
from papsmear.probes.duplicates import find_duplicates
from papsmear.probes.inputs import check_names, other_counts
from papsmear.probes.masks import read_parts_and_nucleus
from papsmear.probes.sources import SetSource
from papsmear.probes.splits import source_pictures
from papsmear.progress import say
from papsmear.tiling.phantom.outlines import Outlines

SHOWN = 20  # lines of one kind


def data(
    name: str,
    path: Path,
    kind: Kind | None = None,
    classes: dict[str, Side] | None = None,
    mpp: float | None = None,
) -> int:
    """Says what a set of labelled cells holds: counts, masks, sizes, damaged files, duplicates.

    Exit status 1 where something is wrong: other counts than the public set's, damaged images or masks, images without
    a mask where others have one, and images that are there twice.

    Args:
        name: herlev, sipakmed or hmchh, or any name for a set of your own.
        path: The folder of the unpacked set, or a csv.
        kind: folders, voc or csv, for a set of your own; told by what lies in the folder, if not given.
        classes: The side of each class of a set of your own, such as '{LSIL: positive, NILM: negative}'.
        mpp: The images' µm/px, where they do not tell it.
    """
    own = name not in SETS
    source = SetSource(path, kind, classes, mpp)
    check_names({name: source}, {})
    cells = read_set(name, source)
    _print_classes(cells, own)
    _print_facts(cells)
    wrong = [f"{file}: {reason}" for file, reason in cells.damaged.items()]
    if told := other_counts(cells):
        wrong.append(told)
    wrong += _masks(cells)
    copies, near = _duplicates(cells)
    _say("nearly equal", near)
    _say("wrong", wrong + copies)
    n_wrong = len(wrong) + len(copies)
    say(f"{cells.title}: {n_wrong or 'nothing'} wrong")
    return 1 if n_wrong else 0


def _print_classes(cells: CellSet, own: bool) -> None:
    table = Table("class", "short", "side", title=f"{cells.title}: {len(cells.labels)} images", title_justify="left")
    table.add_column("images", justify="right")
    found = {c.name: (c, n) for c, n in zip(cells.classes, cells.counts(), strict=True)}
    if own:
        for c, n in found.values():
            table.add_row(c.name, c.short, c.side, str(n))
    else:
        table.add_column("public set", justify="right")
        public = SETS[cells.name]
        for c, wanted in zip(public.classes, public.cells, strict=True):
            n = found.get(c.name, (c, 0))[1]
            table.add_row(c.name, c.short, c.side, str(n), str(wanted), style=None if n == wanted else "bold red")
    Console().print(table)


def _print_facts(cells: CellSet) -> None:
    """Masks, sizes, scale and groups, a line each."""
    if not len(cells.labels):
        return
    sizes = np.array([image.shape[:2] for image in cells.images])
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    one = (low == high).all() and len(sizes) > 1
    size = f"all {low[1]} x {low[0]} px" if one else f"{low[1]} x {low[0]} to {high[1]} x {high[0]} px"
    scales = Counter(cells.mpp)
    scale = ", ".join(f"{mpp:g} µm/px" if mpp else "unknown" for mpp in sorted(scales, key=lambda s: s or 0))
    pictures = source_pictures(cells)
    n_masks = sum(mask is not None for mask in cells.masks)
    drawn = " (outlines)" if any(isinstance(mask, Outlines) for mask in cells.masks) else ""
    facts = {
        "size": size,
        "scale": scale or ("unknown; a copy whose cells were brought to one size has lost it" if one else "unknown"),
        "masks": f"{n_masks} of {len(cells.labels)}{drawn}" if n_masks else "none",
        "source pictures": "not told by the names" if pictures is None else str(len(np.unique(pictures))),
    }
    for what, told in facts.items():
        Console().print(f"{what}: {told}", highlight=False)


def _masks(cells: CellSet) -> list[str]:
    """What is wrong with the masks: missing beside others, unreadable, of another size, or without cell or nucleus."""
    if not any(cells.masks):
        return []
    wrong = []
    for path, image, mask in zip_longest(cells.paths, cells.images, cells.masks):
        if mask is None:
            wrong.append(f"{path}: has no mask")
            continue
        try:
            read_parts_and_nucleus(mask, image.shape[:2])
        except InputError as error:
            wrong.append(f"{path}: its mask {error}")
    return wrong


def _duplicates(cells: CellSet) -> tuple[list[str], list[str]]:
    """The images that are copies of another, which is wrong, and those that are nearly equal, which may be."""
    found = find_duplicates(cells.images)
    lines: tuple[list[str], list[str]] = ([], [])
    for a, b in found.pairs():
        classes = [cells.classes[cells.labels[i]].name for i in (a, b)]
        other = f" ({classes[0]} and {classes[1]})" if classes[0] != classes[1] else ""
        copy = found.content[a] == found.content[b]
        what = f"the same image as {cells.paths[a]}" if copy else f"nearly {cells.paths[a]}"
        lines[0 if copy else 1].append(f"{cells.paths[b]}: {what}{other}")
    return lines


def _say(what: str, lines: Sequence[str]) -> None:
    for line in lines[:SHOWN]:
        say(f"{what}: {line}")
    if len(lines) > SHOWN:
        say(f"{what}: and {len(lines) - SHOWN} more")
