"""slides.csv: which slides there are, and the folds that all stages share.

One row a slide: `slide_id, path` required; `label` (0, 1 or empty), `patient_id`, `fold`, `annotations`, `site`,
`scanner`, `bethesda`, `mpp`, `z_planes` optional; other columns are kept as they are. Relative paths count from the
csv's folder.
"""

import csv
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from papsmear.errors import UsageError
from papsmear.files import whole
from papsmear.progress import say

_ID = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Slide:
    """One row of slides.csv. `path` and the pattern `z_planes` are absolute; `row` holds every column as read."""

    slide_id: str
    path: Path
    label: int | None
    patient_id: str
    fold: int | None
    site: str
    mpp: float | None
    z_planes: str | None
    row: dict[str, str]


def read_slides(file: Path, need_files: bool = True) -> list[Slide]:
    """Reads slides.csv and checks every row; one UsageError lists all that is wrong.

    `need_files=False` leaves out the check that the slide files are there, for stages that only want labels and folds.
    """
    header, rows = _read_rows(file)
    problems = [f"column {name!r} is missing" for name in ("slide_id", "path") if name not in header]
    problems += [f"column {name!r} is there {n} times" for name, n in Counter(header).items() if n > 1]
    if problems:
        raise UsageError(f"{file}: {'; '.join(problems)}; the header has: {', '.join(header) or 'nothing'}")
    slides: list[Slide] = []
    line_of: dict[str, int] = {}
    for line, row in rows:
        slide, wrong = _parse(row, file.parent, need_files)
        first = line_of.setdefault(row["slide_id"], line)
        if row["slide_id"] and first != line:
            wrong.append(f"slide_id {row['slide_id']!r} is already in line {first}; ids must differ")
        problems += [f"line {line}: {what}" for what in wrong]
        if slide:
            slides.append(slide)
    if not rows:
        problems.append("there are no slides in it")
    if problems:
        raise UsageError(f"{file}: " + "; ".join(problems))
    return slides


def folds_of(file: Path, slides: Sequence[Slide]) -> list[int]:
    """The folds that slides of `file` are in, in order; a UsageError where one patient has slides in several."""
    of_patient: dict[str, set[int]] = {}
    for slide in slides:
        if slide.fold is not None:
            of_patient.setdefault(slide.patient_id, set()).add(slide.fold)
    if split_up := sorted(patient for patient, folds in of_patient.items() if len(folds) > 1):
        first = split_up[0]
        raise UsageError(
            f"{file}: {len(split_up)} patients have slides in several folds, such as patient_id {first!r} in "
            f"{', '.join(map(str, sorted(of_patient[first])))}, so one would be trained and tested on; papsmear split "
            f"{file} makes folds that keep patients whole"
        )
    return sorted(set().union(*of_patient.values()))


def _read_rows(file: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header, and each row with its line; values beyond the header's columns are kept under the name ''."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restkey="", restval="", strict=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            rows = [(reader.line_num, _clean(row)) for row in reader]
            return list(reader.fieldnames), rows
    except OSError as error:
        raise UsageError(f"{file}: cannot read the slide list: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file}: not a csv file in UTF-8: {error}") from error


def _clean(row: dict[str, str | list[str]]) -> dict[str, str]:
    return {name: (value if isinstance(value, str) else ",".join(value)).strip() for name, value in row.items()}


def _parse(row: dict[str, str], folder: Path, need_files: bool) -> tuple[Slide | None, list[str]]:
    wrong = []
    slide_id, path = row["slide_id"], row["path"]
    if beyond := row.pop("", ""):
        wrong.append(f"{beyond!r} stands beyond the header's last column; quote values that hold a comma")
    if not _ID.fullmatch(slide_id):
        clean = re.sub(r"[^A-Za-z0-9_-]+", "_", slide_id).strip("_") or "slide_1"
        wrong.append(f"slide_id {slide_id!r} may hold letters, digits, '_' and '-' only; use {clean!r}")
    if not path:
        wrong.append("path is empty")
    elif need_files and not (folder / path).exists():
        wrong.append(f"path {path!r}: no such file or folder (relative paths count from {folder})")
    label = row.get("label", "")
    if label not in ("", "0", "1"):
        wrong.append(f"label {label!r} is not 0, 1 or empty")
    fold = row.get("fold", "")
    if fold and not fold.isdecimal():
        wrong.append(f"fold {fold!r} is not a whole number from 0 on, or empty")
    mpp = _number(row.get("mpp", ""))
    if mpp is not None and not 0.1 <= mpp <= 2:
        wrong.append(f"mpp {row['mpp']!r} is not a number of µm/px from 0.1 to 2, or empty")
    if wrong:
        return None, wrong
    return (
        Slide(
            slide_id=slide_id,
            path=(folder / path).absolute(),
            label=int(label) if label else None,
            patient_id=row.get("patient_id", "") or slide_id,
            fold=int(fold) if fold else None,
            site=row.get("site", ""),
            mpp=mpp,
            z_planes=str((folder / pattern).absolute()) if (pattern := row.get("z_planes", "")) else None,
            row=row,
        ),
        [],
    )


def _number(text: str) -> float | None:
    """The number that `text` gives, None where it is empty, NaN where it is no number."""
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return float("nan")


def write_rows(file: Path, rows: Sequence[dict[str, str]]) -> None:
    """Writes rows with the same columns as a csv, whole."""
    with whole(file) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def split(slides: Path, folds: int = 4, seed: int = 0) -> None:
    """Adds stratified folds, grouped by patient, to a slide list.

    Every patient's slides go to one fold (a slide without patient_id is its own patient); labels are spread evenly,
    slides without a label too. An existing `fold` column is replaced.

    Args:
        slides: The slides.csv to add the column `fold` to.
        folds: How many folds, at least 2.
        seed: Decides which of the equally good splits is taken.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    found = read_slides(slides, need_files=False)
    strata = np.array(["none" if s.label is None else str(s.label) for s in found])
    patients = np.array([s.patient_id for s in found])
    for label in sorted(set(strata) - {"none"}) or ["none"]:
        n_patients = len(set(patients[strata == label]))
        if folds < 2 or n_patients < folds:
            raise UsageError(
                f"{slides}: --folds={folds} needs 2 or more folds and as many patients of each label; "
                f"label {label} has {n_patients}"
            )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold_of = np.empty(len(found), dtype=int)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # few slides without a label do no harm
        for fold, (_, test) in enumerate(splitter.split(strata, strata, patients)):
            fold_of[test] = fold
    write_rows(slides, [{**s.row, "fold": str(fold)} for s, fold in zip(found, fold_of, strict=True)])
    for fold in range(folds):
        inside = fold_of == fold
        counts = ", ".join(f"label {v}: {int((strata[inside] == v).sum())}" for v in sorted(set(strata)))
        say(f"fold {fold}: {int(inside.sum())} slides ({counts})")
