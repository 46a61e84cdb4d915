"""Scores of tiles against scikit-learn, with whole and with resampled weights, and the bootstrap by slide."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from papsmear.probes.binary import AUC, F1, SENSITIVITY, SPECIFICITY, binary_scores, slide_resamples


def test_scores_are_scikit_learns_with_any_weights() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    decisions = np.round(rng.normal(labels - 0.4, 1), 1)  # rounded: with ties
    weights = np.vstack([np.ones((1, 60)), rng.integers(0, 4, (20, 60))]).astype(float)
    found = binary_scores(labels, decisions, weights)
    called = (decisions > 0).astype(int)
    for b, weight in enumerate(weights):
        expected = {
            F1: f1_score(labels, called, sample_weight=weight),
            SENSITIVITY: recall_score(labels, called, sample_weight=weight),
            SPECIFICITY: recall_score(1 - labels, 1 - called, sample_weight=weight),
            AUC: roc_auc_score(labels, decisions, sample_weight=weight),
        }
        assert {name: values[b] for name, values in found.items()} == pytest.approx(expected)
        assert 0 < expected[F1] < 1


def test_a_score_without_tiles_is_0_and_no_nan() -> None:
    found = binary_scores(np.array([1, 0]), np.array([-1.0, -1.0]), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert {name: values.tolist() for name, values in found.items()} == {
        F1: [0, 0, 0], SENSITIVITY: [0, 0, 0], SPECIFICITY: [0, 1, 0], AUC: [0, 0, 0],
    }  # fmt: skip


def test_slides_are_drawn_whole_and_those_with_positive_tiles_apart() -> None:
    slides = np.array([0, 0, 1, 2, 2, 2, 3, 4])
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    drawn = slide_resamples(slides, labels, seed=0, count=500)
    assert drawn.shape == (500, 8)
    of_slide = drawn[:, [0, 2, 3, 6, 7]]
    np.testing.assert_array_equal(drawn, of_slide[:, slides])
    assert (of_slide[:, :2].sum(axis=1) == 2).all()
    assert (of_slide[:, 2:].sum(axis=1) == 3).all()
    assert of_slide.mean(axis=0) == pytest.approx(np.ones(5), abs=0.15)
    assert of_slide.std(axis=0) == pytest.approx([0.707, 0.707, 0.816, 0.816, 0.816], abs=0.08)
    np.testing.assert_array_equal(drawn, slide_resamples(slides, labels, seed=0, count=500))


def test_one_kind_of_slides_alone_is_resampled_too() -> None:
    drawn = slide_resamples(np.array([0, 0, 1]), np.array([1, 0, 1]), seed=0, count=50)
    assert (drawn[:, [0, 2]].sum(axis=1) == 2).all()
