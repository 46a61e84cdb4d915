"""k-nearest neighbours by cosine similarity, with plain majority votes or votes weighted by similarity.

Neighbours are searched once for the largest k and reused for every smaller one. The weighted votes are those of the
official DINO evaluation (Caron et al., arXiv 2104.14294, `eval_knn.py`): exp(similarity / 0.07) for each neighbour.
"""

from collections.abc import Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

TEMPERATURE = 0.07
PLAIN, EXP = "plain votes", "exp(sim/0.07) votes"

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def normalised(features: Floats) -> Floats:
    """Rows (N, D) brought to length 1; a row of zeros stays, and is equally unlike everything."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


def neighbours(train: Floats, queries: Floats, k: int) -> tuple[Ints, Floats]:
    """The training rows (N, D) most alike to each query (Q, D), the most alike first; k ≤ N.

    Their indices (Q, k), and their cosine similarities (Q, k).
    """
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(normalised(train))
    similarities, found = index.search(normalised(queries), k)
    return np.asarray(found, dtype=np.int64), np.asarray(similarities)


def votes(labels: Ints, n_classes: int) -> Ints:
    """The most frequent class in each row of neighbour labels (Q, k); of equally frequent ones that of the nearest."""
    counts = (labels[:, :, None] == np.arange(n_classes)).sum(axis=1)  # (Q, C)
    of_neighbour = np.take_along_axis(counts, labels, axis=1)  # (Q, k): the votes that each neighbour's class got
    nearest = of_neighbour.argmax(axis=1)  # the first, hence nearest, neighbour of a class with most votes
    return np.take_along_axis(labels, nearest[:, None], axis=1)[:, 0]


def exp_votes(labels: Ints, similarities: Floats, n_classes: int) -> Ints:
    """The class with the largest sum of exp(similarity / 0.07) over each row of neighbours (Q, k)."""
    weights = np.exp(similarities.astype(np.float64) / TEMPERATURE)  # (Q, k)
    sums = (weights[:, :, None] * (labels[:, :, None] == np.arange(n_classes))).sum(axis=1)  # (Q, C)
    return np.asarray(sums.argmax(axis=1), dtype=np.int64)


def predict_knn(
    train: Floats, labels: Ints, queries: Floats, ks: Sequence[int], n_classes: int
) -> dict[str, dict[int, Ints]]:
    """Labels (Q,) of `queries` (Q, D) by their neighbours in `train` (N, D): kind of votes → k → labels; k ≤ N."""
    found, similarities = neighbours(train, queries, max(ks))
    near = labels[found]  # (Q, K)
    return {
        PLAIN: {k: votes(near[:, :k], n_classes) for k in ks},
        EXP: {k: exp_votes(near[:, :k], similarities[:, :k], n_classes) for k in ks},
    }
