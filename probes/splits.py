"""Splits of a set into a training and a test part: random as published, and grouped by source picture.

Cells cut out of one picture share its stain, focus and neighbours, so a cell of the same picture in the training part
gives a test cell away. The public sets name the picture in each file name; sets of one's own may tell slides or
patients in its place. A `Part` is the indices of the training cells and those of the test cells. Every split is the
same for every encoder.
"""

import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np
from sklearn.model_selection import StratifiedKFold

from papsmear.probes.classes import SETS
from papsmear.probes.datasets import CellSet
from papsmear.probes.knn import Ints
from papsmear.seeds import derive, rng

TEST_SHARE = 0.25
INNER_FOLDS = 5
_OUTER_FOLDS = round(1 / TEST_SHARE)

Part = tuple[Ints, Ints]


def split(labels: Ints, seed: int, run: int) -> Part:
    """A random split, stratified: a quarter of each class is tested, at least one cell. Each class needs two cells."""
    train, test = [], []
    generator = rng(seed, "split", run)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        n_test = max(1, round(TEST_SHARE * len(members)))
        test.append(members[:n_test])
        train.append(members[n_test:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def random_splits(labels: Ints, runs: int, seed: int) -> list[Part]:
    """The published splits."""
    return [split(labels, seed, run) for run in range(runs)]


def source_pictures(cells: CellSet) -> Ints | None:
    """The source picture, slide or patient of each cell (N,), counted from 0; None where it is not told of each."""
    names: list[str] = []
    public = SETS.get(cells.name)
    if cells.groups:
        names = list(cells.groups)
    elif public:
        for path, label in zip(cells.paths, cells.labels, strict=True):
            told = re.match(public.picture, PurePosixPath(path).stem)
            names.append(f"{label if public.pictures_of_class else ''}/{told[1]}" if told else "")
    if not names or not all(names):
        return None
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def grouped_splits(labels: Ints, pictures: Ints | None, runs: int, seed: int) -> list[Part]:
    """Splits in which no picture is on both sides: scikit-learn's StratifiedGroupKFold of four, a fold tested a run.

    So four runs test every cell once; runs beyond deal the pictures anew. Empty where the pictures are not known, or
    where a class comes from fewer than four of them.
    """
    if pictures is None or min(len(np.unique(pictures[labels == label])) for label in np.unique(labels)) < _OUTER_FOLDS:
        return []
    parts: list[Part] = []
    for deal in range(-(-runs // _OUTER_FOLDS)):
        state = _state(seed, "grouped split", deal)
        parts += _grouped_folds(labels.tobytes(), pictures.tobytes(), _OUTER_FOLDS, state)
    return parts[:runs]


def inner_folds(labels: Ints, pictures: Ints | None, seed: int) -> list[Part]:
    """Folds inside a training part, to choose k or C by: stratified, and grouped where its cells' `pictures` are given.

    Five, or fewer where there are not as many cells or pictures. Empty where there are not two.
    """
    n_pictures = len(labels) if pictures is None else len(np.unique(pictures))
    count = min(INNER_FOLDS, int(np.bincount(labels).max()), n_pictures)
    if count < 2:
        return []
    state = _state(seed, "inner folds")
    if pictures is not None:
        found = _grouped_folds(labels.tobytes(), pictures.tobytes(), count, state)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class")  # it is then missing in some of the folds
            found = tuple(StratifiedKFold(count, shuffle=True, random_state=state).split(labels, labels))
    return [(fit, check) for fit, check in found if len(fit) and len(check)]


@lru_cache(maxsize=256)  # the same for every encoder
def _grouped_folds(labels: bytes, pictures: bytes, count: int, state: int) -> tuple[Part, ...]:
    """The folds of scikit-learn's StratifiedGroupKFold of int64 labels and pictures (N,), in a fraction of its time.

    Pictures are dealt one by one, those with the least even classes first, each to the fold that leaves the shares of
    the classes most even over the folds; of folds equally good, to the smallest.
    """
    y, groups = (np.unique(np.frombuffer(of, np.int64), return_inverse=True)[1] for of in (labels, pictures))
    cells = np.zeros((groups.max() + 1, y.max() + 1))  # (P, C): of each class in each picture
    np.add.at(cells, (groups, y), 1)
    total = cells.sum(axis=0)
    order = np.random.RandomState(state).permutation(len(cells))
    order = order[np.argsort(-cells[order].std(axis=1), kind="stable")]
    dealt, fold_of, each = np.zeros((count, len(total))), np.empty(len(cells), np.int64), np.arange(count)
    for picture in order:
        tried = np.repeat(dealt[None], count, axis=0)  # (F, F, C): the folds, were the picture dealt to each of them
        tried[each, each] += cells[picture]
        uneven, sizes = (tried / total).std(axis=1).mean(axis=1).tolist(), dealt.sum(axis=1).tolist()
        best = 0
        for fold in range(1, count):
            alike = abs(uneven[fold] - uneven[best]) <= 1e-8 + 1e-5 * uneven[best]
            if uneven[fold] < uneven[best] or (alike and sizes[fold] < sizes[best]):
                best = fold
        dealt[best] += cells[picture]
        fold_of[picture] = best
    held = fold_of[groups]  # (N,)
    return tuple((np.flatnonzero(held != fold), np.flatnonzero(held == fold)) for fold in range(count))


def smallest_training_part(parts: Sequence[Part]) -> int:
    """The number of training cells of the split that has fewest."""
    return min(len(train) for train, _ in parts)


def _state(seed: int, *position: int | str) -> int:
    """A seed of the 32 bits that scikit-learn takes."""
    return derive(seed, *position) % 2**32
