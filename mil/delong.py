"""AUC with its variance, and of several heads on the same slides the covariance, without assuming a distribution.

DeLong, DeLong & Clarke-Pearson (1988): an AUC is the mean of the structural components, for each positive slide the
share of negative ones that it outranks, and for each negative slide the share of positive ones that outrank it; the
components' covariances give that of the AUCs. Sun & Xu (2014, algorithm 2) take the components from midranks, in
O(S log S) where the formula is O(m n).

Slides of one patient are alike. Obuchowski (1997, Nonparametric analysis of clustered ROC curve data) therefore sums
the components of each patient first; where each patient has one slide, that is DeLong's covariance.

H: heads. S: slides, m of them positive and n negative. P: patients.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

Floats = NDArray[np.float64]
Interval = tuple[float, float]

Z95 = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Aucs:
    """The AUCs (H,) of heads on the same slides, and their covariance (H, H); NaN with one patient of a class."""

    auc: Floats
    covariance: Floats

    def interval(self, head: int = 0) -> Interval | None:
        """95 % interval of an AUC, within 0 and 1; None where its variance is 0 or not known."""
        return _interval(float(self.auc[head]), float(self.covariance[head, head]), 0.0, 1.0)


@dataclass(frozen=True)
class AucDifference:
    """One head's AUC less another's on the same slides: 95 % interval, and the two-sided p-value of no difference."""

    value: float
    interval: Interval | None
    p: float | None


def delong(labels: NDArray[np.int64], scores: Floats, patients: NDArray[np.int64] | None = None) -> Aucs:
    """AUCs and their covariance, of `labels` (S,) with both classes and `scores` (H, S): Sun & Xu 2014, eq. 5 to 9.

    Slides with the same number in `patients` (S,) are of one patient; without it each slide is of another.
    """
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]  # (H, m), (H, n)
    m, n = positive.shape[1], negative.shape[1]
    ranks = rankdata(np.concatenate([positive, negative], axis=1), axis=1)  # (H, S), midranks
    of_positive = (ranks[:, :m] - rankdata(positive, axis=1)) / n  # (H, m): share of negatives that it outranks
    of_negative = 1 - (ranks[:, m:] - rankdata(negative, axis=1)) / m  # (H, n): share of positives that outrank it
    whose = np.arange(m + n) if patients is None else np.unique(patients, return_inverse=True)[1]  # (S,)
    covariance = _covariance(of_positive, of_negative, whose[labels == 1], whose[labels == 0])
    return Aucs(of_positive.mean(axis=1), covariance)


def mean_of_folds(folds: list[Aucs]) -> Aucs:
    """The mean AUC over folds that share no patient, whose heads are given: variances add up."""
    count = len(folds)
    auc = np.mean([fold.auc for fold in folds], axis=0)
    return Aucs(auc, np.sum([fold.covariance for fold in folds], axis=0) / count**2)


def difference(aucs: Aucs, first: int = 0, second: int = 1) -> AucDifference:
    """The AUC of head `first` less that of `second`: the paired test of DeLong et al. 1988, eq. 8 for one contrast."""
    value = float(aucs.auc[first] - aucs.auc[second])
    c = aucs.covariance
    variance = float(c[first, first] + c[second, second] - 2 * c[first, second])
    interval = _interval(value, variance, -1.0, 1.0)
    p = None if interval is None else float(2 * norm.sf(abs(value) / math.sqrt(variance)))
    return AucDifference(value, interval, p)


def _covariance(
    of_positive: Floats, of_negative: Floats, whose_positive: NDArray[np.int64], whose_negative: NDArray[np.int64]
) -> Floats:
    """(H, H) of components (H, m) and (H, n), of the patients (m,) and (n,): S10/m + S01/n + (S11 + S11')/mn of the
    paper; NaN where one patient cannot tell.
    """
    m, n = len(whose_positive), len(whose_negative)
    patients = len(np.union1d(whose_positive, whose_negative))
    sums_positive = _by_patient(of_positive, whose_positive, patients)  # (H, P)
    sums_negative = _by_patient(of_negative, whose_negative, patients)  # (H, P)
    within = _spread(sums_positive[:, np.unique(whose_positive)], m) / m
    within = within + _spread(sums_negative[:, np.unique(whose_negative)], n) / n
    between = sums_positive @ sums_negative.T * (patients / max(1, patients - 1)) / (m * n)  # (H, H)
    return np.asarray(within + between + between.T)


def _by_patient(components: Floats, whose: NDArray[np.int64], patients: int) -> Floats:
    """(H, P): the sums over each patient's slides of how far components (H, K) lie from their mean, the AUC."""
    excess = components - components.mean(axis=1, keepdims=True)
    return np.stack([np.bincount(whose, row, patients) for row in excess])


def _spread(sums: Floats, slides: int) -> Floats:
    """(H, H): S10 or S01 of the paper by the sums (H, P) of the patients who have some of the `slides` of a class."""
    heads, patients = sums.shape
    if patients < 2:
        return np.full((heads, heads), np.nan)
    return np.asarray(sums @ sums.T * (1 / (patients - 1)) * (patients / slides))


def _interval(value: float, variance: float, least: float, most: float) -> Interval | None:
    if not variance > 1e-15:  # rounding may leave a trace of what is 0; NaN is not above it either
        return None
    half = Z95 * math.sqrt(variance)
    return max(least, value - half), min(most, value + half)
