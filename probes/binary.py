"""Scores of a classifier of tiles, positive or negative, and their bootstrap by slide.

Tiles of one slide share its stain, focus and patient, so slides are resampled, with all their tiles (the cluster
bootstrap; Davison & Hinkley 1997, section 3.8), those with positive tiles and those without apart: every resample then
has both.

Shapes: N tiles, B resamples.
"""

import numpy as np
from numpy.typing import NDArray

from papsmear.probes.bootstrap import RESAMPLES
from papsmear.probes.knn import Ints
from papsmear.seeds import rng

F1, SENSITIVITY, SPECIFICITY, AUC = "F1 of positives", "sensitivity", "specificity", "AUC"

Doubles = NDArray[np.float64]


def binary_scores(labels: Ints, decisions: Doubles, weights: Doubles) -> dict[str, Doubles]:
    """Each score (B,) of tiles with `labels` and `decisions` (N,), above 0 for positive, weighted by `weights` (B, N).

    AUC is the share of pairs, a positive and a negative tile, of which the positive has the higher decision; equal
    ones count half (Hanley & McNeil 1982). A score without tiles is 0.
    """
    positive, called = labels == 1, decisions > 0
    of_positives, of_negatives = weights[:, positive], weights[:, ~positive]  # (B, P) and (B, N - P)
    apart = decisions[positive][:, None] - decisions[~positive]  # (P, N - P)
    ranked = ((of_positives @ ((apart > 0) + 0.5 * (apart == 0))) * of_negatives).sum(axis=1)
    hits, false = (weights[:, positive & called].sum(axis=1), weights[:, ~positive & called].sum(axis=1))
    n_positive, n_negative = of_positives.sum(axis=1), of_negatives.sum(axis=1)
    return {
        F1: _share(2 * hits, n_positive + hits + false),
        SENSITIVITY: _share(hits, n_positive),
        SPECIFICITY: _share(n_negative - false, n_negative),
        AUC: _share(ranked, n_positive * n_negative),
    }


def slide_resamples(slides: Ints, labels: Ints, seed: int, count: int = RESAMPLES) -> Doubles:
    """How often each tile is drawn (B, N), when slides are drawn with replacement; `slides` (N,) counts from 0."""
    with_positive = np.unique(slides[labels == 1])
    drawn = np.zeros((count, int(slides.max()) + 1))
    for name, stratum in (("positive", with_positive), ("negative", np.setdiff1d(slides, with_positive))):
        if len(stratum):
            share = np.full(len(stratum), 1 / len(stratum))
            drawn[:, stratum] = rng(seed, "slides", name).multinomial(len(stratum), share, size=count)
    return drawn[:, slides]


def _share(part: Doubles, whole: Doubles) -> Doubles:
    return part / np.maximum(whole, np.finfo(float).tiny)
