"""DeepPap's figures against formulas written out, and against the paper's own."""

import numpy as np
import pytest

from papsmear.probes import deeppap
from papsmear.probes.classes import HERLEV
from papsmear.probes.deeppap import PROTOCOL, DeepPap, cross_validation
from papsmear.probes.screening import FoldScores, binary, of_classes, screening_figures


def test_figures_are_the_formulas() -> None:
    generator = np.random.default_rng(0)
    abnormal = np.array([True] * 30 + [False] * 12)
    score = np.clip(generator.normal(0.45 + 0.2 * abnormal, 0.2), 0, 1)
    tp = sum(a and s > 0.5 for a, s in zip(abnormal, score, strict=True))
    tn = sum(not a and s <= 0.5 for a, s in zip(abnormal, score, strict=True))
    sensitivity, specificity, precision = tp / 30, tn / 12, tp / (tp + 12 - tn)
    assert 0 < tn < 12
    assert 0 < tp < 30
    pairs = [(a > b) + (a == b) / 2 for a in score[:30] for b in score[30:]]
    assert screening_figures(abnormal, score) == pytest.approx({
        "sensitivity": sensitivity,
        "specificity": specificity,
        "accuracy": (tp + tn) / 42,
        "H-mean": 2 / (1 / sensitivity + 1 / specificity),
        "F": 2 / (1 / sensitivity + 1 / precision),
        "AUC": np.mean(pairs),
    })  # fmt: skip


def test_figures_without_a_hit_are_zero() -> None:
    found = screening_figures(np.array([True, False]), np.array([0.1, 0.9]))
    assert set(found.values()) == {0.0}


def test_all_folds_together() -> None:
    """Two folds of six cells in three classes, the first two abnormal: figures are means, counts are sums."""
    labels = np.array([0, 1, 2, 0, 1, 2])
    abnormal = labels < 2
    scores = [np.array([[0.2, 0.8], [0.9, 0.1], [0.7, 0.3]]), np.array([[0.1, 0.9], [0.4, 0.6], [0.3, 0.7]])]
    turned = [s[:, ::-1] for s in scores]
    folds = [
        FoldScores(np.arange(3) + 3 * i, s, {10: t}, (0.5,))
        for i, (s, t) in enumerate(zip(scores, turned, strict=True))
    ]
    found = binary(folds, abnormal, labels)
    assert found.figures["sensitivity"].runs == (0.5, 1.0)
    assert found.figures["specificity"].runs == (1.0, 0.0)
    assert found.correct.tolist() == [2, 1, 1]
    assert found.accuracy_by_px[0].runs == pytest.approx((2 / 3, 2 / 3))
    assert found.accuracy_by_px[10].runs == pytest.approx((1 / 3, 1 / 3))
    three = [np.eye(3)[[0, 1, 2]], np.eye(3)[[0, 0, 1]]]
    of_all = of_classes([FoldScores(f.test, s, {}, ()) for f, s in zip(folds, three, strict=True)], labels)
    assert of_all.error.runs == pytest.approx((0, 2 / 3))
    assert of_all.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_the_published_class_figures_give_the_published_ones() -> None:
    """So they count cells that are rightly called normal or abnormal, not cells in their own class."""
    cells = {"CIS": 150, "LD": 182, "MD": 146, "SD": 197, "NC": 98, "NI": 70, "NS": 74}
    assert sum(cells.values()) == 917
    right = {name: round(n * deeppap.PUBLISHED_CORRECT[name] / 100) for name, n in cells.items()}
    sides = {side: [c.short for c in HERLEV if c.side == side] for side in ("positive", "negative")}
    for side, figure in (("positive", "sensitivity"), ("negative", "specificity")):
        share = sum(right[c] for c in sides[side]) / sum(cells[c] for c in sides[side])
        assert round(100 * share, 1) == deeppap.PUBLISHED[figure]


def test_folds_test_each_cell_once_and_keep_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [50, 25, 10])
    pictures = np.arange(85) // 2
    for groups in (None, pictures):
        parts = cross_validation(labels, [True, True, False], groups, 5, seed=3)
        assert np.sort(np.concatenate([test for _, test in parts])).tolist() == list(range(85))
        for train, test in parts:
            assert not set(train) & set(test)
            assert abs(np.bincount(labels[test]) - [10, 5, 2]).max() <= 2
            if groups is not None:
                assert not set(pictures[train]) & set(pictures[test])
    again = cross_validation(labels, [True, True, False], None, 5, seed=3)
    other = cross_validation(labels, [True, True, False], None, 5, seed=4)
    first = cross_validation(labels, [True, True, False], None, 5, seed=3)[0][1]
    assert np.array_equal(first, again[0][1])
    assert not np.array_equal(first, other[0][1])
    assert cross_validation(labels, [True, True, False], np.minimum(pictures, 40), 5, seed=3) == [], "two pictures only"


def test_departures_are_named() -> None:
    assert PROTOCOL.departures() == {}
    assert DeepPap(epochs=2, crops=1).departures() == {"epochs": (2, 30), "crops": (1, 10)}
