"""Bootstrap intervals of AUCs, and of their differences on the same slides.

Slides are drawn with replacement within their fold and class, so that a resample has as many positive and negative
slides as there are. Every head is resampled alike, which makes a difference a paired one. Intervals are percentiles
(Efron & Tibshirani 1993, chapter 13). The heads stay as they are: an interval says what other test slides would have
given, not other training slides.

B: resamples. H: heads. S: slides, m of them positive and n negative.
"""

import numpy as np
from numpy.typing import NDArray

from papsmear.mil.delong import Floats, Interval
from papsmear.seeds import rng

RESAMPLES = 2000


def resampled_aucs(labels: NDArray[np.int64], scores: Floats, fold: int = 0) -> Floats:
    """The AUCs (H, B) of `labels` (S,) and `scores` (H, S) in every resample; the same draws for the same fold."""
    random = rng(0, "bootstrap", fold)
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]  # (H, m), (H, n)
    m, n = positive.shape[1], negative.shape[1]
    of_positive = random.multinomial(m, np.full(m, 1 / m), RESAMPLES) / m  # (B, m): how often each is drawn, of m
    of_negative = random.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n  # (B, n)
    aucs = np.empty((len(scores), RESAMPLES))
    for head, (p, q) in enumerate(zip(positive, negative, strict=True)):
        outranks = (np.sign(p[:, None] - q) + 1) / 2  # (m, n): 1, and 1/2 for equals
        aucs[head] = ((of_positive @ outranks) * of_negative).sum(axis=1)
    return aucs


def percentiles(values: Floats) -> Interval | None:
    """The 95 % percentile interval of resampled values (B,); None where all are the same, which tells nothing."""
    low, high = np.percentile(values, [2.5, 97.5])
    return None if np.ptp(values) < 1e-12 else (float(low), float(high))
