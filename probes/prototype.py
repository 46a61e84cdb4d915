"""The prototype probe: each class is the mean of its features, and a cell goes to the most alike one.

Nearest class mean by cosine similarity, as in prototypical networks (Snell et al., arXiv 1703.05175, equation 1) with
features brought to length 1. Nothing is chosen.
"""

import numpy as np

from papsmear.probes.knn import Floats, Ints, neighbours, normalised


def predict_prototype(train: Floats, labels: Ints, queries: Floats) -> Ints:
    """Labels (Q,) of the class mean most alike to each of `queries` (Q, D), the means taken over `train` (N, D)."""
    unit, present = normalised(train), np.unique(labels)
    means = np.stack([unit[labels == label].mean(axis=0) for label in present])  # (C, D)
    nearest, _ = neighbours(means, queries, 1)
    return np.asarray(present[nearest[:, 0]], dtype=np.int64)
