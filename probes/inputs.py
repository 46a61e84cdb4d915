"""What `papsmear probe` is given to look at: sets to probe and in-house sets to transfer to, read and checked."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from papsmear.errors import UsageError
from papsmear.probes.classes import CLASSES, SETS
from papsmear.probes.datasets import CellSet, read_cells, read_set
from papsmear.probes.duplicates import find_duplicates
from papsmear.probes.results import GROUPED, UNGROUPED
from papsmear.probes.scale import Resize, check_scale
from papsmear.probes.sources import SetSource
from papsmear.probes.splits import grouped_splits, random_splits, source_pictures
from papsmear.probes.transfer import check_targets
from papsmear.progress import say

Sources = Mapping[str, SetSource | Path]


def check_names(sets: Sources, targets: Sources, option_of_sets: str = "--sets") -> None:
    """UsageError for a name that leads nowhere, before anything is read."""
    if not sets:
        options = " or ".join(f"{option_of_sets}.{name}=DIR" for name, classes in CLASSES.items() if len(classes) > 1)
        raise UsageError(f"{option_of_sets}: none given; give {options}")
    for option, sources in ((option_of_sets, sets), ("--targets", targets)):
        for name, source in sources.items():
            if not re.fullmatch(r"[\w+-]+", name):
                raise UsageError(f"{option}: a set's name has letters, digits, '_' and '-' only, not {name!r}")
            if name not in SETS and isinstance(source, Path) and source.suffix.lower() != ".csv":
                raise UsageError(
                    f"{option}: no set is called {name!r}; give {', '.join(SETS)}, or your own with its classes: "
                    f"'{option}.{name}={{path: {source}, classes: {{…: positive, …: negative}}}}'"
                )
    if twice := sorted(set(sets) & set(targets)):
        raise UsageError(f"--targets.{twice[0]}: one of the sets has that name too; call it otherwise")


def read_inputs(sets: Sources, targets: Sources, resize: Resize) -> tuple[dict[str, CellSet], dict[str, CellSet]]:
    """The sets, public ones first, and the targets. UsageError where they cannot be used as asked."""
    order = [name for name in SETS if name in sets] + [name for name in sets if name not in SETS]
    cell_sets = {name: read_cells(name, sets[name]) for name in order}
    target_sets = {name: read_set(name, source) for name, source in targets.items()}
    check_targets(cell_sets, target_sets)
    if resize == "mpp":
        for cells in (*cell_sets.values(), *target_sets.values()):
            check_scale(cells)
    return cell_sets, target_sets


def other_counts(cells: CellSet) -> str:
    """How the numbers of cells differ from the public set's; "" where they do not, and for a set of one's own."""
    if cells.name not in SETS:
        return ""
    public = SETS[cells.name]
    found = {c.name: n for c, n in zip(cells.classes, cells.counts(), strict=True)}
    other = [
        f"{found.get(c.name, 0)} {c.name} instead of {n}"
        for c, n in zip(public.classes, public.cells, strict=True)
        if found.get(c.name, 0) != n
    ]
    if not other:
        return ""
    return f"{len(cells.labels)} cells, where the public set has {cells.published_cells}: {', '.join(other)}"


def duplicate_facts(cells: CellSet, runs: int, seed: int) -> dict[str, Any]:
    """Duplicates of a set, and how many test cells have one in the training part: the mean over the splits of a kind.

    `exact`: images that are a copy of another; `near`: pairs nearly equal; `other_class`: pairs of different classes.
    """
    found = find_duplicates(cells.images)
    pairs = found.pairs()
    grouped = grouped_splits(cells.labels, source_pictures(cells), runs, seed)
    across = {UNGROUPED: found.across(random_splits(cells.labels, runs, seed))}
    return {
        "exact": found.exact,
        "near": len(found.near),
        "other_class": sum(bool(cells.labels[a] != cells.labels[b]) for a, b in pairs),
        "pairs": [[cells.paths[a], cells.paths[b]] for a, b in pairs],
        "test_cells_with_one_in_training": across | ({GROUPED: found.across(grouped)} if grouped else {}),
    }


def say_faults(cells: CellSet, duplicates: Mapping[str, Any] | None = None) -> None:
    """A line for every image that could not be read, for other counts than the public set's, and for duplicates."""
    for file, reason in cells.damaged.items():
        say(f"{cells.title}: {file} is left out: {reason}")
    if told := other_counts(cells):
        say(f"{cells.title}: {told}")
    if duplicates and duplicates["pairs"]:
        across = duplicates["test_cells_with_one_in_training"]
        told = ", ".join(f"{n:.1f} where splits are {splits}" for splits, n in across.items())
        say(
            f"{cells.title}: {duplicates['exact']} images are a copy of another, {duplicates['near']} pairs are nearly "
            f"equal; test cells with one in their training part: {told}"
        )


def plain_sources(sources: Sources) -> dict[str, Any]:
    """The sources as a configuration has them."""
    return {
        name: str(source)
        if isinstance(source, Path)
        else {key: value for key, value in asdict(source).items() if value is not None} | {"path": str(source.path)}
        for name, source in sources.items()
    }
