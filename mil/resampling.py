"""Bootstrap intervals of AUCs, and of their differences on the same slides.

Patients are drawn with replacement, each with all of their slides, since slides of one patient are alike (the cluster
bootstrap; Davison & Hinkley 1997, section 3.8). They are drawn within their fold and kind: those with positive slides
only, with negative ones only, and with both. So where each patient has one slide, a resample has as many positive and
negative slides as there are. Every head is resampled alike, which makes a difference a paired one. Intervals are
percentiles (Efron & Tibshirani 1993, chapter 13). The heads stay as they are: an interval says what other test slides
would have given, not other training slides.

B: resamples. H: heads. S: slides, m of them positive and n negative.
"""

import numpy as np
from numpy.typing import NDArray

from papsmear.mil.delong import Floats, Interval
from papsmear.seeds import rng

RESAMPLES = 2000


def resampled_aucs(
    labels: NDArray[np.int64], scores: Floats, fold: int = 0, patients: NDArray[np.int64] | None = None
) -> Floats:
    """The AUCs (H, B) of `labels` (S,) and `scores` (H, S) in every resample; the same draws for the same fold.

    Slides with the same number in `patients` (S,) are of one patient; without it each slide is of another.
    """
    whose = np.arange(len(labels)) if patients is None else np.unique(patients, return_inverse=True)[1]
    times = _times_drawn(labels, whose, rng(0, "bootstrap", fold))  # (B, S)
    of_positive, of_negative = _shares(times[:, labels == 1]), _shares(times[:, labels == 0])  # (B, m), (B, n)
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]  # (H, m), (H, n)
    aucs = np.empty((len(scores), RESAMPLES))
    for head, (p, q) in enumerate(zip(positive, negative, strict=True)):
        outranks = (np.sign(p[:, None] - q) + 1) / 2  # (m, n): 1, and 1/2 for equals
        aucs[head] = ((of_positive @ outranks) * of_negative).sum(axis=1)
    return aucs


def _shares(times: NDArray[np.int64]) -> Floats:
    return np.asarray(times / times.sum(axis=1, keepdims=True))


def _times_drawn(labels: NDArray[np.int64], whose: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """(B, S): how often each slide is in each resample, by the patients (S,) that are drawn."""
    has_positive, has_negative = (np.isin(whose, whose[labels == label]) for label in (1, 0))  # (S,) of their patients
    times = np.empty((RESAMPLES, len(labels)), np.int64)
    for kind in (has_positive & ~has_negative, has_negative & ~has_positive, has_positive & has_negative):
        of_kind, member = np.unique(whose[kind], return_inverse=True)
        if patients := len(of_kind):
            times[:, kind] = random.multinomial(patients, np.full(patients, 1 / patients), RESAMPLES)[:, member]
    return times


def percentiles(values: Floats) -> Interval | None:
    """The 95 % percentile interval of resampled values (B,); None where all are the same, which tells nothing."""
    low, high = np.percentile(values, [2.5, 97.5])
    return None if np.ptp(values) < 1e-12 else (float(low), float(high))
