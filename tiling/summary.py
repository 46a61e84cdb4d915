"""The cohort at a glance: OUT/summary.csv, a row a slide, and OUT/summary.html, one page with all overviews.

Both are made from what lies in the folder, not from what one run did. So runs that share a list may each write them,
and the last one's tell of all slides.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from papsmear.errors import InputError
from papsmear.files import write_text
from papsmear.tiling import failed
from papsmear.tiling.folder import NOT_THERE, OVERVIEW, find_damage
from papsmear.tiling.shards import read_slide_json

CSV, PAGE = "summary.csv", "summary.html"
PICTURES = 500  # on a page of at most about 10 MB
THUMBNAIL_PX, FAILURE_PX = 240, 480
LEAST_CONFIDENCE = 0.5
LEAST_OF_MEDIAN = 0.5  # of the cohort: a slide below is worth a look
COHORT = 5  # slides from which on a median says something
OTHER_DIAMETER = 0.25  # of the cohort's median: more than deposits of one method differ
CUT_OFF = 0.02  # of the radius, that a circle may stand over the slide's edge


@dataclass(frozen=True)
class Row:
    """What the summary says of a slide; `about` is its slide.json, empty where there is none."""

    slide_id: str
    status: str
    about: dict[str, Any]
    reason: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, str]:
        """The row in summary.csv."""
        about, deposit = self.about, self.about.get("deposit", {})
        dropped = about.get("counts", {}).get("dropped")
        found = {
            "tiles": about.get("counts", {}).get("tiles"),
            "dropped": sum(dropped.values()) if dropped is not None else None,
            "diameter_mm": deposit.get("diameter_mm"),
            "confidence": deposit.get("confidence"),
            "mpp": about.get("mpp"),
            "reader": about.get("reader"),
            "focus": about.get("focus", {}).get("median"),
            "content": about.get("content", {}).get("median"),
        }
        texts = {name: "" if value is None else _text(value) for name, value in found.items()}
        return {
            "slide_id": self.slide_id, "status": self.status, **texts,
            "warnings": "; ".join(self.warnings), "reason": self.reason,
        }  # fmt: skip


def write_summary(out: Path, slide_ids: Sequence[str]) -> Path:
    """Writes summary.csv and summary.html of these slides; the page's path."""
    rows = _warned([_row(out, slide_id) for slide_id in slide_ids])
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0].values), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.values for row in rows)
    write_text(out / CSV, table.getvalue())
    write_text(out / PAGE, _page(out, rows))
    return out / PAGE


def _row(out: Path, slide_id: str) -> Row:
    folder = out / slide_id
    damage = find_damage(folder) if folder.is_dir() else NOT_THERE
    about = {} if damage else read_slide_json(folder)
    try:
        reason = failed.read_reason(out, slide_id)
    except InputError as error:
        reason = f"unknown ({error.__cause__})"
    if reason is not None:
        return Row(slide_id, "failed", about, reason)
    if damage is None:
        return Row(slide_id, "done", about)
    return Row(slide_id, "not yet", {}) if damage == NOT_THERE else Row(slide_id, "damaged", {}, damage)


def _warned(rows: list[Row]) -> list[Row]:
    """The rows with their warnings, which compare a slide with the cohort."""
    done = [row.about for row in rows if row.status == "done"]
    usual = {}
    for name, where in (("focus", "median"), ("counts", "tiles"), ("deposit", "diameter_mm")):
        values = [about[name][where] for about in done if about.get(name, {}).get(where) is not None]
        usual[name] = median(values) if len(values) >= COHORT else 0
    return [
        Row(row.slide_id, row.status, row.about, row.reason, tuple(_warnings(row.about, usual)))
        if row.status == "done"
        else row
        for row in rows
    ]


def _warnings(about: dict[str, Any], usual: dict[str, float]) -> list[str]:
    deposit, warnings = about.get("deposit", {}), []
    confidence, circle = deposit.get("confidence"), deposit.get("circle_level0")
    if confidence is not None and confidence < LEAST_CONFIDENCE:
        warnings.append(f"unsure where the deposit is (confidence {confidence:.2f})")
    if circle is not None:
        x, y, radius = circle
        width, height = about["size_level0"]
        over = max(radius - x, radius - y, x + radius - width, y + radius - height)
        if over > CUT_OFF * radius:
            warnings.append("the deposit is cut off at the slide's edge")
    diameter_mm, usual_mm = deposit.get("diameter_mm"), usual["deposit"]
    if diameter_mm is not None and abs(diameter_mm - usual_mm) > OTHER_DIAMETER * usual_mm > 0:
        warnings.append(f"a deposit of {diameter_mm:.3g} mm (the cohort's median is {usual_mm:.3g} mm)")
    focus, tiles = about.get("focus", {}).get("median"), about["counts"]["tiles"]
    if focus is not None and focus < LEAST_OF_MEDIAN * usual["focus"]:
        warnings.append(f"blurred (focus {focus:,.1f}, the cohort's median is {usual['focus']:,.1f})")
    if tiles < LEAST_OF_MEDIAN * usual["counts"]:
        warnings.append(f"few tiles ({tiles:,}, the cohort's median is {usual['counts']:,.0f})")
    if about.get("mpp_from") == "given":
        warnings.append(f"µm/px not from the file ({about['mpp']:g} was given)")
    return warnings


def _page(out: Path, rows: list[Row]) -> str:
    from papsmear.page import render  # jinja2 takes longer to import than a done cohort to check

    order = {"failed": 0, "damaged": 1}
    troubled = sorted((row for row in rows if row.status in order), key=lambda row: order[row.status])
    warned = [row for row in rows if row.warnings]
    others = [row for row in rows if row.status == "done" and not row.warnings]
    all_fit = len(rows) <= PICTURES
    shown = [*troubled, *warned][:PICTURES] + others * all_fit
    pictures = {row.slide_id: _picture(out, row) for row in shown}
    return render(
        "tiling/summary.html",
        totals=_totals(rows),
        n_tiles=sum(row.about["counts"]["tiles"] for row in rows if row.status == "done"),
        troubled=[(row, pictures[row.slide_id]) for row in troubled if row.slide_id in pictures],
        warned=[(row, pictures[row.slide_id]) for row in warned if row.slide_id in pictures],
        others=[(row, pictures[row.slide_id]) for row in others * all_fit],
        rows=[row.values for row in (rows if all_fit else shown)],
        n_rows=len(rows),
        limit=PICTURES,
        csv=CSV,
    )


def _totals(rows: list[Row]) -> list[tuple[str, int]]:
    n = Counter(row.status for row in rows)
    more = {"damaged": n["damaged"], "not yet": n["not yet"], "with warnings": sum(bool(row.warnings) for row in rows)}
    totals = {"slides": len(rows), "done": n["done"], "failed": n["failed"]}
    return [*totals.items(), *((name, count) for name, count in more.items() if count)]


def _picture(out: Path, row: Row) -> str | None:
    """A data URI of the slide's overview, or of what was found on one that failed; None where there is none."""
    if row.status == "done":
        return _shrunk(out / row.slide_id / OVERVIEW, THUMBNAIL_PX)
    return _shrunk(out / failed.FOLDER / f"{row.slide_id}.jpg", FAILURE_PX)


def _shrunk(file: Path, side_px: int) -> str | None:
    import cv2
    import simplejpeg

    from papsmear.page import picture_uri

    try:
        data = file.read_bytes()
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        shrink = max(height, width) / side_px
        size = (max(1, round(width / shrink)), max(1, round(height / shrink)))
        rgb = simplejpeg.decode_jpeg(data, min_width=size[0], min_height=size[1])
    except (OSError, ValueError):
        return None
    return picture_uri(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA) if shrink > 1 else rgb, quality=75)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
