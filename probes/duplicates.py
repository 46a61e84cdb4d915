"""Images that a set has twice: the same pixels, or nearly the same picture.

A test cell whose copy is in the training part is no test. Nearly the same are pictures whose difference hashes (dHash,
after Krawetz 2013: is a pixel of the shrunken grey picture brighter than its left, or upper, neighbour?) agree in nine
of ten bits. On Herlev that leaves re-encoded, halved, brightened and slightly cropped copies together, and finds four
cells that were cut out twice; the nearest pair of different cells has two bits more.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.probes.splits import Part

SIDE_PX = 12  # of the shrunken picture
NEAR_BITS = 28  # of the 288 bits, at most so many differ

Ints = NDArray[np.int64]
_ROWS = 1024  # hashes that are compared with all others at once


@dataclass(frozen=True)
class Duplicates:
    """`content` (N,): equal for equal images, counted from 0. `near` (P, 2): pairs of contents nearly equal."""

    content: Ints
    near: Ints

    @property
    def exact(self) -> int:
        """How many images are a copy of one before them."""
        return len(self.content) - len(np.unique(self.content))

    def pairs(self) -> list[tuple[int, int]]:
        """Two images each: every copy with the first of its kind, and the first of two that are nearly equal."""
        first = np.unique(self.content, return_index=True)[1]
        copies = [(int(first[kind]), i) for i, kind in enumerate(self.content) if first[kind] != i]
        return copies + [(int(first[a]), int(first[b])) for a, b in self.near]

    def across(self, parts: Sequence[Part]) -> float:
        """How many test cells have a copy or a near copy in their training part: the mean over the splits."""
        kin = defaultdict(set)
        for a, b in self.near.tolist():
            kin[a].add(b)
            kin[b].add(a)
        counts = []
        for train, test in parts:
            known = set(self.content[train].tolist())
            counts.append(sum(kind in known or not known.isdisjoint(kin[kind]) for kind in self.content[test].tolist()))
        return float(np.mean(counts)) if counts else 0.0


def find_duplicates(images: Sequence[NDArray[np.uint8]]) -> Duplicates:
    """The duplicates among N images (H, W, 3) uint8 in any sizes; one-coloured images are never nearly equal."""
    kinds: dict[tuple[tuple[int, ...], bytes], int] = {}
    content = np.array([kinds.setdefault((i.shape, i.tobytes()), len(kinds)) for i in images], dtype=np.int64)
    first = np.unique(content, return_index=True)[1]
    bits = np.stack([difference_hash(images[i]) for i in first]) if len(first) else np.zeros((0, 1), bool)
    told = np.flatnonzero(bits.any(axis=1))
    signs = 2 * bits[told].astype(np.float32) - 1  # (U, 288)
    near = []
    for start in range(0, len(signs), _ROWS):
        differing = (signs.shape[1] - signs[start : start + _ROWS] @ signs.T) / 2  # (R, U)
        for row, column in np.argwhere(differing <= NEAR_BITS):
            if row + start < column:
                near.append((told[row + start], told[column]))
    return Duplicates(content, np.array(near, dtype=np.int64).reshape(-1, 2))


def difference_hash(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The 288 bits of a picture (H, W, 3): brighter than to the left, and than above."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    wide = cv2.resize(grey, (SIDE_PX + 1, SIDE_PX), interpolation=cv2.INTER_AREA)
    high = cv2.resize(grey, (SIDE_PX, SIDE_PX + 1), interpolation=cv2.INTER_AREA)
    return np.concatenate([(wide[:, 1:] > wide[:, :-1]).ravel(), (high[1:] > high[:-1]).ravel()])
