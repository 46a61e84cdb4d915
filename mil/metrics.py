"""Figures of a slide diagnosis: ranking (AUC, average precision) and decisions at one threshold, with their counts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score


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


def youden_threshold(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """The threshold of highest sensitivity + specificity (Youden 1950); of equals the most sensitive, as for screening.

    It lies midway between two neighbouring probabilities, so that it does not hang on one slide's last digit.
    """
    levels = np.unique(probabilities)  # rising
    candidates = np.concatenate([levels[:1], (levels[:-1] + levels[1:]) / 2])  # rising, so the most sensitive first
    called = probabilities >= candidates[:, None]  # (candidates, S)
    true, false = (called[:, labels == label].sum(axis=1) for label in (1, 0))
    youden = true * (labels == 0).sum() - false * (labels == 1).sum()  # in whole numbers, so that equals are equal
    return float(candidates[np.argmax(youden)])


def probability(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits (S,) as probabilities (S,)."""
    found: NDArray[np.float64] = expit(logits)
    return found


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
