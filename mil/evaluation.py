"""Everything that is said of a test: ranking, decisions and probabilities, each with how sure it is.

A ranking compares slides of the same fold only: over several folds, AUC and average precision are the folds' means,
since a slide of another fold was judged by another head. Decisions and probabilities stand for themselves: they add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from scipy.special import expit
from sklearn.metrics import average_precision_score

from papsmear.mil.calibration import Bin, brier, reliability
from papsmear.mil.delong import Interval, delong, mean_of_folds
from papsmear.mil.metrics import Share, decisions, unread
from papsmear.mil.resampling import percentiles, resampled_aucs
from papsmear.mil.truth import TopTiles
from papsmear.mil.verdicts import Verdicts

TITLES = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
}


@dataclass(frozen=True)
class Evaluation:
    """The figures of labelled slides.

    `patients`: whose the slides are, counted in each fold. Where they are fewer than the slides, all intervals are
    wider, since slides of one patient are alike. `shares`: sensitivity, specificity, ppv, npv at the operating point.
    `unread`: of the negative slides those below every positive one of their fold. `groups`: for each column of
    slides.csv and value sensitivity and specificity.
    `brier_raw`: that of the head's logits before calibration. The AUC has no interval where it is 0 or 1.
    """

    slides: int
    patients: int
    positives: int
    auc: float
    auc_delong: Interval | None
    auc_bootstrap: Interval | None
    average_precision: float
    shares: dict[str, Share]
    unread: Share
    brier: float
    brier_raw: float
    reliability: list[Bin]
    groups: dict[str, dict[str, dict[str, Share]]]
    top_tiles: list[TopTiles]

    @property
    def resampled(self) -> str:
        """What the bootstrap drew."""
        return "patients" if self.patients < self.slides else "slides"

    def facts(self) -> dict[str, Any]:
        """As plain values for JSON; shares of 1, None where there is nothing to divide by."""
        s = self.shares
        return {
            "slides": self.slides,
            "patients": self.patients,
            "resampled": self.resampled,
            "positives": self.positives,
            "auc": self.auc,
            "average_precision": self.average_precision,
            **{name: share.value for name, share in s.items()},
            "true_positives": s["sensitivity"].count,
            "false_negatives": s["sensitivity"].of - s["sensitivity"].count,
            "true_negatives": s["specificity"].count,
            "false_positives": s["specificity"].of - s["specificity"].count,
            "specificity_at_full_sensitivity": self.unread.value,
            "interval_95": {
                "auc_delong": self.auc_delong,
                "auc_bootstrap": self.auc_bootstrap,
                **{name: share.interval for name, share in s.items()},
                "specificity_at_full_sensitivity": self.unread.interval,
            },
            "brier": self.brier,
            "brier_raw": self.brier_raw,
            "reliability": [vars(bin_) for bin_ in self.reliability],
            "groups": {
                column: {
                    value: {name: share_facts(share) for name, share in shares.items()} for value, shares in g.items()
                }
                for column, g in self.groups.items()
            },
            "top_tiles": [vars(top) | {"share": top.share} for top in self.top_tiles],
        }

    def table(self, title: str) -> Table:
        """The main figures for the terminal, each with its 95 % interval and the counts it comes from."""
        shown = Table("figure", "value", "95 %", "from", title=title, title_justify="left")
        negatives = self.slides - self.positives
        counts = f"{self.positives} positive, {negatives} negative slides"
        if self.resampled == "patients":
            counts += f" of {self.patients} patients"
        shown.add_row("AUC", f"{self.auc:.3f}", bracket(self.auc_delong), counts)
        chance = f"{self.positives / self.slides:.3f} by chance"
        shown.add_row("average precision", f"{self.average_precision:.3f}", "", chance)
        for name, share in self.shares.items():
            shown.add_row(TITLES[name], number(share.value), bracket(share.interval), f"{share.count} of {share.of}")
        unread = f"{self.unread.count} of {self.unread.of}"
        shown.add_row("specificity at sensitivity 1", number(self.unread.value), bracket(self.unread.interval), unread)
        shown.add_row("Brier score", f"{self.brier:.3f}", "", f"{self.brier_raw:.3f} before calibration")
        for top in self.top_tiles:
            told = f"{top.hits} of {top.tiles}, {top.by_chance:.1f} by chance, on {top.slides} slides"
            shown.add_row(f"abnormal among top {top.top} tiles", f"{top.share:.3f}", "", told)
        return shown


def evaluate(verdicts: Verdicts, top_tiles: Sequence[TopTiles] = ()) -> Evaluation:
    """The figures of slides of one or several folds, with both classes in each fold."""
    labels, log_odds, patients = verdicts.labels, verdicts.log_odds, verdicts.patients
    probabilities = np.asarray(expit(log_odds))
    parts = [(fold, labels[of], log_odds[of][None], patients[of]) for fold, of in verdicts.by_fold().items()]
    aucs = mean_of_folds([delong(y, scores, whose) for _, y, scores, whose in parts])
    resampled = np.mean([resampled_aucs(y, scores, fold, whose)[0] for fold, y, scores, whose in parts], axis=0)  # (B,)
    below = np.zeros(len(labels), bool)
    for of in verdicts.by_fold().values():
        below[of] = unread(labels[of], log_odds[of])
    return Evaluation(
        slides=len(labels),
        patients=verdicts.n_patients,
        positives=int(labels.sum()),
        auc=float(aucs.auc[0]),
        auc_delong=aucs.interval(),
        auc_bootstrap=percentiles(resampled),
        average_precision=float(np.mean([average_precision_score(y, scores[0]) for _, y, scores, _ in parts])),
        shares=decisions(labels, verdicts.called, patients),
        unread=Share.among(below[labels == 0], patients[labels == 0]),
        brier=brier(labels, probabilities),
        brier_raw=brier(labels, np.asarray(expit(verdicts.logits))),
        reliability=reliability(labels, probabilities, patients),
        groups={
            column: {value: _decided(verdicts, of) for value, of in values.items()}
            for column, values in verdicts.groups().items()
        },
        top_tiles=list(top_tiles),
    )


def _decided(verdicts: Verdicts, of: Any) -> dict[str, Share]:
    found = decisions(verdicts.labels[of], verdicts.called[of], verdicts.patients[of])
    return {name: found[name] for name in ("sensitivity", "specificity")}


def share_facts(share: Share) -> dict[str, Any]:
    """A share as plain values."""
    return {"value": share.value, "count": share.count, "of": share.of, "interval_95": share.interval}


def number(value: float | None) -> str:
    """Three digits; a dash where there is nothing."""
    return "–" if value is None else f"{value:.3f}"


def bracket(interval: Interval | None) -> str:
    """An interval in words; nothing where there is none."""
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
