"""Sets listed in a csv, such as the in-house cells and tiles of `papsmear crop`.

Columns: `file`, relative to the csv's folder; `class` or `label` (1 positive, 0 negative, empty neither), or both.
Optional: `slide_id`, `group` (what may not be on both sides of a split; the slide, if not given), `fold`, `mpp`.
Other columns are left alone.
"""

import csv
import re
from collections import defaultdict
from pathlib import Path

from papsmear.errors import UsageError
from papsmear.probes.classes import Side
from papsmear.probes.sources import Listed

_SIDE_OF: dict[str, Side] = {"1": "positive", "0": "negative", "": "neither"}
_MPP = re.compile(r"(?=.*[1-9])\d{1,2}(\.\d+)?|\.\d*[1-9]\d*")


def find_listed(file: Path) -> tuple[list[Listed], dict[str, Side]]:
    """The cells of a csv, and the side of each class by its column `label`; one UsageError lists all that is wrong."""
    header, rows = _read(file)
    problems = [] if "file" in header else ["column 'file' is missing"]
    if "class" not in header and "label" not in header:
        problems.append("column 'class' or 'label' is missing")
    if problems:
        raise UsageError(f"{file}: {'; '.join(problems)}; the header has: {', '.join(header) or 'nothing'}")
    cells: list[Listed] = []
    sides: dict[str, set[Side]] = defaultdict(set)
    for line, row in rows:
        try:
            cell, side = _cell(row, file.parent)
        except ValueError as error:
            problems.append(f"line {line}: {error}")
            continue
        cells.append(cell)
        if side is not None:
            sides[cell.class_name].add(side)
    for class_name, found in sides.items():
        if len(found) > 1:
            problems.append(f"class {class_name!r} is labelled {' and '.join(sorted(found))}")
    if not rows:
        problems.append("there are no cells in it")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UsageError(f"{file}: {'; '.join(problems[:5])}{more}")
    return cells, {class_name: next(iter(found)) for class_name, found in sides.items()}


def _cell(row: dict[str, str], folder: Path) -> tuple[Listed, Side | None]:
    """The cell of a row, and its side where there is a column `label`. ValueError where something is wrong."""
    label, fold, mpp = row.get("label"), row.get("fold", ""), row.get("mpp", "")
    if not row["file"]:
        raise ValueError("file is empty")
    if label is not None and label not in _SIDE_OF:
        raise ValueError(f"label {label!r} is not 0, 1 or empty")
    if fold and not fold.isdecimal():
        raise ValueError(f"fold {fold!r} is not a whole number from 0 on, or empty")
    if mpp and not _MPP.fullmatch(mpp):
        raise ValueError(f"mpp {mpp!r} is not a number of µm/px, or empty")
    side = None if label is None else _SIDE_OF[label]
    class_name = row.get("class") or side
    if not class_name:
        raise ValueError("class is empty")
    slide_id = row.get("slide_id", "")
    return Listed(
        folder / row["file"],
        class_name,
        group=row.get("group") or slide_id,
        slide_id=slide_id,
        fold=int(fold) if fold else None,
        mpp=float(mpp) if mpp else None,
    ), side


def _read(file: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header, and each row with its line."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restkey="", restval="", strict=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            rows = [
                (reader.line_num, {key: value.strip() for key, value in row.items() if isinstance(value, str)})
                for row in reader
            ]
            return list(reader.fieldnames), rows
    except OSError as error:
        raise UsageError(f"{file}: cannot read the list of cells: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file}: not a csv file in UTF-8: {error}") from error
