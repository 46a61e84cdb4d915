"""The worklist: many slides on one page, those most worth reading first, and as a csv.

Slides that the model cannot judge, and files that could not be read, stand at the end with the reason: somebody has
to read them too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from papsmear.cohort import write_rows
from papsmear.files import write_text
from papsmear.mil.diagnosis import SUSPICIOUS
from papsmear.page import RESEARCH_USE_ONLY, render

FAILED = "failed"


@dataclass(frozen=True)
class Entry:
    """A slide of the list: what its JSON says, or why there is none."""

    slide_id: str
    record: dict[str, Any] | None
    failure: str = ""

    @property
    def probability(self) -> float | None:
        """None where the slide has not been judged."""
        return None if self.record is None else self.record["probability"]

    @property
    def decision(self) -> str:
        """In words."""
        return FAILED if self.record is None else str(self.record["decision"])

    @property
    def reason(self) -> str:
        """Why the slide has not been judged."""
        return self.failure if self.record is None else "; ".join(self.record["reasons"])


def write_worklist(out: Path, entries: Sequence[Entry]) -> Path:
    """Writes `worklist.csv` and `worklist.html`, whose path it returns, to the folder `out`."""
    ordered = sorted(entries, key=_order)
    write_rows(out / "worklist.csv", [_row(entry) for entry in ordered])
    judged = [entry for entry in ordered if entry.probability is not None]
    page = render(
        "mil/worklist.html",
        judged=judged,
        not_assessable=[entry for entry in ordered if entry.record is not None and entry.probability is None],
        failed=[entry for entry in ordered if entry.record is None],
        above=sum(entry.decision == SUSPICIOUS for entry in judged),
        suspicious=SUSPICIOUS,
    )
    write_text(out / "worklist.html", page)
    return out / "worklist.html"


def _order(entry: Entry) -> tuple[int, float, str]:
    if entry.probability is not None:
        return 0, -entry.probability, entry.slide_id
    return 1 + (entry.record is None), 0.0, entry.slide_id


def _row(entry: Entry) -> dict[str, str]:
    record = entry.record or {}
    return {
        "slide_id": entry.slide_id,
        "decision": entry.decision,
        "probability": "" if entry.probability is None else f"{entry.probability:.6f}",
        "operating_point": f"{record['operating_point']:.6f}" if record else "",
        "reason": entry.reason,
        "page": f"{entry.slide_id}.html" if record else "",
        "note": RESEARCH_USE_ONLY,
    }
