"""`papsmear probe --compare A B …`: reports that are there already, side by side.

Figures compare where sets hold the same cells, told by their checksum, and the splits are the same: by one seed and
number of runs. Then the bootstrap's resamples are the same too, and the interval of a difference is that of the
reports' own replicates, as if both encoders had been in one report. What does not compare is marked.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from papsmear import __version__
from papsmear.errors import InputError, UsageError
from papsmear.files import write_text
from papsmear.page import render
from papsmear.probes.bootstrap import interval
from papsmear.probes.report import BOOTSTRAP, SCHEMA
from papsmear.progress import say

HOW = ("splits", "probe", "chosen")


@dataclass(frozen=True)
class Report:
    """A report that was read: its results.json, and the replicates (R, B) of its rows, None where they are missing."""

    name: str
    found: dict[str, Any]
    replicates: NDArray[np.float32] | None

    def rows(self, set_name: str) -> dict[tuple[str, ...], tuple[int, dict[str, Any]]]:
        """(encoder, splits, probe, where chosen) → number and row of `protocols`."""
        return {
            (row["encoder"], *(row[key] for key in HOW)): (number, row)
            for number, row in enumerate(self.found["protocols"])
            if row["set"] == set_name
        }


def compare_reports(paths: Sequence[Path], out: Path) -> int:
    """Writes compare.html and compare.json, and prints weighted F1 of all."""
    reports = read_reports(paths)
    document = compared(reports)
    write_text(out / "compare.json", json.dumps(document, indent=1))
    write_text(out / "compare.html", render("probes/compare.html", version=__version__, **page_values(document)))
    _print(document)
    say(f"comparison: {out / 'compare.html'}")
    return 0


def read_reports(paths: Sequence[Path]) -> list[Report]:
    """The reports, each by its folder's name; UsageError where there are not two, or they have no set in common."""
    if len(paths) < 2:
        raise UsageError("--compare: give two reports or more, folders or their results.json")
    reports: list[Report] = []
    for path in paths:
        file = path / "results.json" if path.is_dir() else path
        name = file.absolute().parent.name
        twice = sum(report.name.partition(" #")[0] == name for report in reports)
        reports.append(_read(file, f"{name} #{twice + 1}" if twice else name))
    if not set.intersection(*(set(report.found["sets"]) for report in reports)):
        told = "; ".join(f"{report.name}: {', '.join(report.found['sets'])}" for report in reports)
        raise UsageError(f"--compare: the reports have no set in common ({told}); probe the encoders on one set")
    return reports


def _read(file: Path, name: str) -> Report:
    if not file.is_file():
        raise UsageError(f"--compare: {file}: no such file; give a report's folder, or its results.json")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: damaged ({error}); make the report again") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise UsageError(
            f"{file}: its schema is {'an earlier one' if schema is None else schema}, this papsmear reads {SCHEMA}; "
            "make the report again, its features are kept"
        )
    try:
        replicates = np.load(file.with_name(BOOTSTRAP), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        replicates = None
    if replicates is not None and len(replicates) != len(found["protocols"]):
        replicates = None
    return Report(name, found, replicates)


def compared(reports: Sequence[Report]) -> dict[str, Any]:
    """What compare.json holds: figures are shares of 1, differences are the first minus the second."""
    first = reports[0].found
    names = [name for name in first["sets"] if all(name in report.found["sets"] for report in reports)]
    return {
        "schema": SCHEMA,
        "papsmear": __version__,
        "reports": [
            {"name": report.name, "papsmear": report.found["papsmear"], **report.found["protocol"]}
            for report in reports
        ],
        "sets": {name: {report.name: _facts(report, reports[0], name) for report in reports} for name in names},
        "rows": [
            {"report": report.name, **row}
            for name in names
            for report in reports
            for _, row in report.rows(name).values()
        ],
        "differences": [
            difference
            for name in names
            for i, report in enumerate(reports)
            for other in reports[i + 1 :]
            for difference in _differences(report, other, name)
        ],
        "transfer": [{"report": report.name, **row} for report in reports for row in report.found["transfer"]],
    }


def _facts(report: Report, first: Report, name: str) -> dict[str, Any]:
    """What a set was in a report, and how that differs from the first report."""
    found = report.found["sets"][name]
    return {
        "images": found["images"],
        "sha256": found["sha256"],
        "differs": differing(report, first, name),
        "leaks": report.found["leaks"].get(name, []),
    }


def differing(a: Report, b: Report, name: str) -> list[str]:
    """Why figures of a set do not compare between two reports; empty where they do."""
    why = []
    if a.found["sets"][name]["sha256"] != b.found["sets"][name]["sha256"]:
        why.append("other cells")
    if any(a.found["protocol"][key] != b.found["protocol"][key] for key in ("runs", "seed", "test_share")):
        why.append("other splits")
    if a.found["protocol"]["resize"] != b.found["protocol"]["resize"]:
        why.append("images resized otherwise")
    return why


def _differences(a: Report, b: Report, name: str) -> list[dict[str, Any]]:
    """Every encoder of one report against every one of the other, where cells and splits are the same."""
    if {"other cells", "other splits"} & set(differing(a, b, name)) or a.replicates is None or b.replicates is None:
        return []
    rows = []
    for (encoder, *how), (number, row) in a.rows(name).items():
        for (other, *its), (place, row_b) in b.rows(name).items():
            if how == its:
                low, high = interval(a.replicates[number].astype(float) - b.replicates[place].astype(float))
                told = {key: row[key] for key in (*HOW, "as_published", "honest")}
                rows.append({
                    "set": name, "first": [a.name, encoder], "second": [b.name, other], **told,
                    "mean": row["weighted_f1"]["mean"] - row_b["weighted_f1"]["mean"],
                    "interval_95": [low, high], "clear": not low <= 0 <= high,
                })  # fmt: skip
    return rows


def page_values(document: dict[str, Any]) -> dict[str, Any]:
    """The rows as the page's tables: for each set its columns (report and encoder), and figures by protocol."""
    sections = []
    for name, of_reports in document["sets"].items():
        rows = [row for row in document["rows"] if row["set"] == name]
        columns = list(dict.fromkeys((row["report"], row["encoder"]) for row in rows))
        protocols: dict[tuple[str, ...], dict[str, Any]] = {}
        for row in rows:
            of = protocols.setdefault(tuple(row[key] for key in HOW), {"how": row, "figures": {}})
            of["figures"][row["report"], row["encoder"]] = row["weighted_f1"]
        pairs: dict[tuple[str, ...], dict[tuple[str, ...], Any]] = {}
        for row in document["differences"]:
            if row["set"] == name and (row["as_published"] or row["honest"]):
                how = tuple(row[key] for key in HOW)
                pairs.setdefault((*row["first"], *row["second"]), {})[how] = row
        shown = [how for how in protocols if any(how in of for of in pairs.values())]
        sections.append({
            "name": name, "reports": of_reports, "columns": columns, "protocols": protocols, "pairs": pairs,
            "compared": shown,
        })  # fmt: skip
    return {"sections": sections, "reports": document["reports"], "transfer": document["transfer"]}


def _print(document: dict[str, Any]) -> None:
    """Weighted F1 on standard output: as published, and by the honest k-NN and linear probes."""
    table = Table("set", "report", "encoder", title="Weighted F1, %", title_justify="left")
    for column in ("k-NN as published", "k-NN honest", "linear honest"):
        table.add_column(column, justify="right")
    shown: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in document["rows"]:
        figure = f"{100 * row['weighted_f1']['mean']:.1f} ± {100 * row['weighted_f1']['sd']:.1f}"
        kind = "published" if row["as_published"] else row["probe"] if row["honest"] else ""
        shown.setdefault((row["set"], row["report"], row["encoder"]), {})[kind] = figure
    for (name, report, encoder), of in shown.items():
        marks = document["sets"][name][report]["differs"]
        told = f"{report} ({', '.join(marks)})" if marks else report
        figures = (of.get(kind, "–") for kind in ("published", "k-NN, plain votes", "linear"))
        table.add_row(name, told, encoder, *figures)
    if any(of["differs"] for of_reports in document["sets"].values() for of in of_reports.values()):
        table.caption = "in brackets: how a report differs from the first one; such figures do not compare"
    Console().print(table)
