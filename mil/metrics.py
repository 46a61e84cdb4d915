"""Figures of a slide diagnosis: ranking (AUC, average precision) and decisions at one threshold, with their counts."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from sklearn.metrics import average_precision_score, roc_auc_score

from papsmear.mil.delong import Z95, Interval


@dataclass(frozen=True)
class Share:
    """`count` of `of` slides, which tell as much as `worth` slides of as many patients; None: `of`."""

    count: int
    of: int
    worth: float | None = None

    @classmethod
    def among(cls, hits: NDArray[np.bool_], patients: NDArray[np.int64]) -> Self:
        """The share of slides that are `hits` (S,); slides with the same number in `patients` (S,) are of one."""
        return cls(int(hits.sum()), len(hits), _worth(hits, patients))

    @property
    def value(self) -> float | None:
        """The share; None of no slides."""
        return self.count / self.of if self.of else None

    @property
    def interval(self) -> Interval | None:
        """Its 95 % interval (Wilson 1927), which holds where shares are 0 or 1 or slides are few.

        Of slides that are worth fewer, it is that of so many (one of those that Franco, Little, Louis & Slud 2019
        recommend, in their comparative study of confidence intervals for proportions in complex sample surveys).
        """
        if not self.of:
            return None
        n, z2 = self.worth or self.of, Z95**2
        p = self.count / self.of
        middle = (n * p + z2 / 2) / (n + z2)
        half = Z95 / (n + z2) * math.sqrt(n * p * (1 - p) + z2 / 4)
        return max(0.0, middle - half), min(1.0, middle + half)


def _worth(hits: NDArray[np.bool_], patients: NDArray[np.int64]) -> float | None:
    """How many slides of as many patients would tell as much of a share: Rao & Scott 1992, the ratio estimator.

    At most all of them; at least what they would be if the slides of a patient were all alike, which is also the
    answer where the share is 0 or 1 or all are of one patient, and nothing tells how alike they are. None where no
    patient has two.
    """
    whose = np.unique(patients, return_inverse=True)[1]
    of, count = np.bincount(whose), np.bincount(whose, hits)  # of each patient
    n, m = len(hits), len(of)
    if n == m:
        return None
    p = float(hits.mean())
    alike = float((of**2).sum()) / n  # as many times the variance of n patients' slides at most
    if m == 1 or p in (0, 1):
        return n / alike
    variance = m / (m - 1) * float(((count - p * of) ** 2).sum()) / n**2
    return n / min(max(variance / (p * (1 - p) / n), 1), alike)


@dataclass(frozen=True)
class Figures:
    """What is said of a set of slides; `threshold` is a probability, and a slide at or above it is called positive."""

    auc: float
    average_precision: float
    threshold: float
    true_positives: int
    false_negatives: int
    true_negatives: int
    false_positives: int

    @property
    def sensitivity(self) -> float:
        """Share of the positive slides that are called positive."""
        return self.true_positives / (self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> float:
        """Share of the negative slides that are called negative."""
        return self.true_negatives / (self.true_negatives + self.false_positives)

    def headline(self) -> dict[str, float]:
        """Those that are logged after each epoch."""
        names = ("auc", "average_precision", "sensitivity", "specificity", "threshold")
        return {name: getattr(self, name) for name in names}


def decisions(labels: NDArray[np.int64], called: NDArray[np.bool_], patients: NDArray[np.int64]) -> dict[str, Share]:
    """Sensitivity, specificity and predictive values of slides with `labels` (S,) that are `called` positive (S,)."""
    positive = labels == 1
    right = called == positive
    among = {"sensitivity": positive, "specificity": ~positive, "ppv": called, "npv": ~called}
    return {name: Share.among(right[of], patients[of]) for name, of in among.items()}


def unread(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which slides (S,) are below every positive one: nobody needs to read them (specificity at sensitivity 1).

    The threshold is the lowest score of a positive slide of these very slides, so this is what could be, in hindsight.
    """
    below: NDArray[np.bool_] = scores < scores[labels == 1].min()
    return below


def choice(labels: NDArray[np.int64], auc: float, loss: float) -> float:
    """What names the best epoch: the AUC, and among epochs of the same AUC the loss, as rounded as a checkpoint's name.

    An AUC moves in steps of at least 1 / (2 * positives * negatives): less than a step is left to the loss.
    """
    step = 0.5 / (int(labels.sum()) * int((1 - labels).sum()))
    return float(np.float32(auc + 0.99 * step * np.exp(-loss)))


def figures(labels: NDArray[np.int64], probabilities: NDArray[np.float64], threshold: float) -> Figures:
    """Figures of slides with `labels` (S,) and `probabilities` (S,); both classes must be among the labels."""
    called = probabilities >= threshold
    return Figures(
        auc=float(roc_auc_score(labels, probabilities)),
        average_precision=float(average_precision_score(labels, probabilities)),
        threshold=threshold,
        true_positives=int((called & (labels == 1)).sum()),
        false_negatives=int((~called & (labels == 1)).sum()),
        true_negatives=int((~called & (labels == 0)).sum()),
        false_positives=int((called & (labels == 0)).sum()),
    )


def table(title: str, found: Figures) -> Table:
    """The figures as a table for the terminal, each with the counts it comes from."""
    positives = found.true_positives + found.false_negatives
    negatives = found.true_negatives + found.false_positives
    rows = (
        ("AUC", found.auc, f"{positives} positive, {negatives} negative slides"),
        ("average precision", found.average_precision, f"{positives / (positives + negatives):.3f} by chance"),
        ("sensitivity", found.sensitivity, f"{found.true_positives} of {positives} at {found.threshold:.3f} or more"),
        ("specificity", found.specificity, f"{found.true_negatives} of {negatives} below {found.threshold:.3f}"),
    )
    shown = Table("figure", "value", "from", title=title, title_justify="left")
    for name, value, source in rows:
        shown.add_row(name, f"{value:.3f}", source)
    return shown
