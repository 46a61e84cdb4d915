"""Which of two heads is better: their AUCs on the same slides of the same folds, as pairs.

Over folds the difference is the mean of the folds' differences. Folds share no patient, so their variances add up.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from papsmear.mil.delong import AucDifference, Interval, delong, difference, mean_of_folds
from papsmear.mil.resampling import percentiles, resampled_aucs
from papsmear.mil.runs import System


@dataclass(frozen=True)
class Comparison:
    """The AUC of `first` less that of `second` over their common `folds`: DeLong's paired test, and the bootstrap.

    Both are by patient where the `slides` are of fewer `patients`. Neither is widened for the number of comparisons.
    """

    first: System
    second: System
    folds: tuple[int, ...]
    slides: int
    patients: int
    delong: AucDifference
    bootstrap: Interval | None

    @property
    def clear(self) -> bool:
        """Both intervals leave out 0."""
        both = (self.bootstrap, self.delong.interval)
        return all(interval is not None and not interval[0] <= 0 <= interval[1] for interval in both)

    def facts(self) -> dict[str, Any]:
        """As plain values for JSON."""
        names = {"first": [self.first.encoder, self.first.head], "second": [self.second.encoder, self.second.head]}
        of = {"folds": list(self.folds), "slides": self.slides, "patients": self.patients}
        found = {"delong": asdict(self.delong), "bootstrap_interval_95": self.bootstrap, "clear": self.clear}
        return names | of | found


def compare(first: System, second: System) -> Comparison | None:
    """The comparison of two systems; None where they share no fold."""
    folds = tuple(fold for fold in first.tests if fold in second.tests)
    if not folds:
        return None
    aucs, resampled, slides, patients = [], [], 0, 0
    for fold in folds:
        a, b = first.tests[fold].verdicts, second.tests[fold].verdicts
        scores = np.stack([a.log_odds, b.log_odds])  # (2, S), of the same slides in the same order
        aucs.append(delong(a.labels, scores, a.patients))
        resampled.append(resampled_aucs(a.labels, scores, fold, a.patients))  # (2, B)
        slides, patients = slides + len(a.slides), patients + a.n_patients
    mean = np.mean(resampled, axis=0)
    found = difference(mean_of_folds(aucs)), percentiles(mean[0] - mean[1])
    return Comparison(first, second, folds, slides, patients, *found)


def comparisons(systems: Sequence[System]) -> list[Comparison]:
    """Every two heads of an encoder, and every two encoders of a head."""
    pairs = [(a, b) for a, b in combinations(systems, 2) if a.encoder == b.encoder or a.head == b.head]
    return [found for a, b in pairs if (found := compare(a, b)) is not None]
