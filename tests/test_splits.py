"""Splits: stratified as published, no picture on both sides where they are grouped, folds inside a training part."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from papsmear.probes.classes import HERLEV, SIPAKMED
from papsmear.probes.datasets import CellSet, read_cells
from papsmear.probes.splits import _grouped_folds, grouped_splits, inner_folds, random_splits, source_pictures, split


def cells_named(name: str, names: list[str], labels: list[int]) -> CellSet:
    classes = HERLEV if name == "herlev" else SIPAKMED
    return CellSet(name, classes, tuple(names), (), np.array(labels), {})


def test_a_split_is_a_stratified_quarter_and_the_same_for_every_encoder() -> None:
    labels = np.repeat(np.arange(4), [100, 40, 7, 2])
    train, test = split(labels, seed=1, run=0)
    assert sorted([*train, *test]) == list(range(149))
    assert np.bincount(labels[test]).tolist() == [25, 10, 2, 1]
    np.testing.assert_array_equal(test, split(labels, 1, 0)[1])
    assert not np.array_equal(test, split(labels, 1, 1)[1])
    assert not np.array_equal(test, split(labels, 2, 0)[1])


@given(
    sizes=st.lists(st.integers(1, 6), min_size=8, max_size=40), n_classes=st.integers(2, 4), seed=st.integers(0, 999)
)
def test_no_picture_is_on_both_sides_and_four_runs_test_every_cell_once(
    sizes: list[int], n_classes: int, seed: int
) -> None:
    """Outer splits, and the folds inside each training part; pictures of 1 to 6 cells, some with two classes."""
    pictures = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(seed).permutation(pictures) % n_classes
    parts = grouped_splits(labels, pictures, 4, seed)
    enough = all(len(set(pictures[labels == label])) >= 4 for label in np.unique(labels))
    assert len(parts) == (4 if enough else 0)
    for train, test in parts:
        assert not set(pictures[train]) & set(pictures[test])
        assert sorted([*train, *test]) == list(range(len(labels)))
        for fit, check in inner_folds(labels[train], pictures[train], seed):
            assert not set(pictures[train][fit]) & set(pictures[train][check])
            assert sorted([*fit, *check]) == list(range(len(train)))
    if parts:
        assert sorted(np.concatenate([test for _, test in parts])) == list(range(len(labels)))


@given(
    sizes=st.lists(st.integers(1, 9), min_size=6, max_size=60),
    n_classes=st.integers(1, 6),
    mixed=st.booleans(),
    count=st.integers(2, 5),
    state=st.integers(0, 2**32 - 1),
)
def test_pictures_are_dealt_as_scikit_learn_deals_them(
    sizes: list[int], n_classes: int, mixed: bool, count: int, state: int
) -> None:
    """Pictures of one class or several, many of them alike, so that folds are often equally good."""
    pictures = np.repeat(np.arange(len(sizes)), sizes)
    labels = (np.random.default_rng(state).permutation(pictures) if mixed else pictures) % n_classes
    assume(np.bincount(labels).max() >= count)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        theirs = list(StratifiedGroupKFold(count, shuffle=True, random_state=state).split(labels, labels, pictures))
    ours = _grouped_folds(labels.tobytes(), pictures.tobytes(), count, state)
    for (fit, check), (their_fit, their_check) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(fit, their_fit)
        np.testing.assert_array_equal(check, their_check)


def test_runs_beyond_four_deal_the_pictures_anew_and_runs_do_not_depend_on_their_number() -> None:
    pictures = np.repeat(np.arange(40), 3)
    labels = pictures % 3
    many, few = grouped_splits(labels, pictures, 6, 0), grouped_splits(labels, pictures, 2, 0)
    assert len(many) == 6
    for (_, a), (_, b) in zip(many, few, strict=False):
        np.testing.assert_array_equal(a, b)
    assert not any(np.array_equal(many[4][1], test) for _, test in many[:4])


def test_file_names_tell_the_source_picture() -> None:
    herlev = cells_named("herlev", ["a/14-15-001.BMP", "a/14-15-002.BMP", "b/14-16-001.BMP", "b/9-10-001.BMP"], [0] * 4)
    assert source_pictures(herlev).tolist() == [0, 0, 0, 1], "in Herlev a picture may show several classes"
    sipakmed = cells_named("sipakmed", ["d/001_01.bmp", "d/001_02.bmp", "k/001_01.bmp"], [0, 0, 1])
    assert source_pictures(sipakmed).tolist() == [0, 0, 1], "SIPaKMeD counts the pictures of each class from 1"
    assert source_pictures(cells_named("herlev", ["a/14-15-001.BMP", "a/cell7.BMP"], [0, 0])) is None


def test_no_grouped_splits_without_pictures_or_with_a_class_from_too_few() -> None:
    labels = np.repeat([0, 1], 12)
    assert grouped_splits(labels, None, 4, 0) == []
    assert grouped_splits(labels, np.r_[np.arange(12), [20, 21, 22] * 4], 4, 0) == []
    assert len(grouped_splits(labels, np.r_[np.arange(12), [20, 21, 22, 23] * 3], 4, 0)) == 4


@pytest.mark.parametrize("counts", [[1, 1], [2, 1], [1, 9], [3, 0, 4]])
def test_folds_inside_a_tiny_training_part(counts: list[int]) -> None:
    """As many folds as there can be, no warning, no empty one; none where no class has two cells."""
    labels = np.repeat(np.arange(len(counts)), counts)
    folds = inner_folds(labels, None, 0)
    assert len(folds) == (min(5, max(counts)) if max(counts) > 1 else 0)
    assert all(len(fit) and len(check) for fit, check in folds)
    assert inner_folds(labels, np.zeros(len(labels), int), 0) == [], "one picture cannot be dealt"


def test_the_real_cells_come_from_323_pictures_and_grouping_keeps_their_classes_balanced(shared_data: Path) -> None:
    cells = read_cells("herlev", shared_data / "herlev")
    pictures = source_pictures(cells)
    assert len(np.unique(pictures)) == 323
    for train, test in grouped_splits(cells.labels, pictures, 4, 0):
        assert abs(len(test) / 917 - 0.25) < 0.01
        shares = np.bincount(cells.labels[test]) / np.bincount(cells.labels)
        assert ((shares > 0.15) & (shares < 0.35)).all()
        assert not set(pictures[train]) & set(pictures[test])
    shared = [set(pictures[train]) & set(pictures[test]) for train, test in random_splits(cells.labels, 4, 0)]
    assert min(map(len, shared)) > 100, "the published splits do share pictures"
