"""k-nearest neighbours by cosine similarity, with plain majority votes or votes weighted by similarity.

Neighbours are searched once for the largest k and reused for every smaller one, and once for all splits of a set. The
weighted votes are those of the official DINO evaluation (Caron et al., arXiv 2104.14294, `eval_knn.py`):
exp(similarity / 0.07) for each neighbour.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

TEMPERATURE = 0.07
_DEPTH = 4
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


@dataclass(frozen=True)
class Neighbourhoods:
    """The cells of a set most alike to each of its N cells, searched once for all splits and folds.

    Features (N, D); the indices and similarities (N, M) of the M nearest cells, the most alike first.
    """

    features: Floats
    near: Ints
    similarities: Floats

    @classmethod
    def of(cls, features: Floats, k: int) -> "Neighbourhoods":
        """Deep enough that nearly always k of a cell's nearest are in any one training part."""
        return cls(features, *neighbours(features, features, min(_DEPTH * k, len(features))))

    def among(self, part: Ints, queries: Ints, k: int) -> tuple[Ints, Floats]:
        """The cells `part` (P,) most alike to each of the cells `queries` (Q,), as `neighbours` finds them; k ≤ P.

        Their indices in the set (Q, k), and their similarities (Q, k).
        """
        member = np.zeros(len(self.features), bool)
        member[part] = True
        near, similarities = self.near[queries], self.similarities[queries]  # (Q, M)
        inside = member[near]
        first = np.argsort(~inside, axis=1, kind="stable")[:, :k]
        found, alike = np.take_along_axis(near, first, axis=1), np.take_along_axis(similarities, first, axis=1)
        few = inside.sum(axis=1) < k
        if few.any():  # most of its nearest are outside, such as those of its own picture
            places, alike[few] = neighbours(self.features[part], self.features[queries[few]], k)
            found[few] = part[places]
        return found, alike


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
    return votes_by_k(labels[found], similarities, ks, n_classes)


def votes_by_k(near: Ints, similarities: Floats, ks: Sequence[int], n_classes: int) -> dict[str, dict[int, Ints]]:
    """Labels (Q,) by the first k of the neighbours' labels and similarities (Q, K): kind of votes → k → labels."""
    return {
        PLAIN: {k: votes(near[:, :k], n_classes) for k in ks},
        EXP: {k: exp_votes(near[:, :k], similarities[:, :k], n_classes) for k in ks},
    }
