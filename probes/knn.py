"""k-nearest neighbours by cosine similarity, with plain majority votes.

Neighbours are searched once for the largest k and reused for every smaller one.
"""

import faiss
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def normalised(features: Floats) -> Floats:
    """Rows (N, D) brought to length 1; a row of zeros stays, and is equally unlike everything."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


def neighbours(train: Floats, queries: Floats, k: int) -> Ints:
    """Indices (Q, k) of the training rows (N, D) most alike to each query (Q, D), the most alike first; k ≤ N."""
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(normalised(train))
    _, found = index.search(normalised(queries), k)
    return np.asarray(found, dtype=np.int64)


def votes(labels: Ints, n_classes: int) -> Ints:
    """The most frequent class in each row of neighbour labels (Q, k); of equally frequent ones that of the nearest."""
    counts = (labels[:, :, None] == np.arange(n_classes)).sum(axis=1)  # (Q, C)
    of_neighbour = np.take_along_axis(counts, labels, axis=1)  # (Q, k): the votes that each neighbour's class got
    nearest = of_neighbour.argmax(axis=1)  # the first, hence nearest, neighbour of a class with most votes
    return np.take_along_axis(labels, nearest[:, None], axis=1)[:, 0]
