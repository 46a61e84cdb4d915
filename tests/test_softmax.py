"""Logistic regression in scaled directions has scikit-learn's minimum, and the fast weighted F1 is scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from papsmear.probes.scores import weighted_f1
from papsmear.probes.softmax import Scales, fit_softmax, scales_of


def rows(n_classes: int, n: int = 240, width: int = 90, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows whose columns have mean 0 and whose directions vary by a factor of a thousand, as those of networks do."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(n) % n_classes)
    x = 0.7 * generator.normal(size=(n_classes, width))[labels] + generator.normal(size=(n, width))
    x = (x * np.geomspace(5, 0.005, width)) @ np.linalg.qr(generator.normal(size=(width, width)))[0]
    return (x - x.mean(axis=0)).astype(np.float32), labels


def objective(x: NDArray[np.float32], labels: NDArray[np.int64], c: float, w: NDArray[np.floating]) -> float:
    """The mean of -log p(label) plus |W|² / (2 C N), by its formula; two classes as one weight vector."""
    logits = x.astype(float) @ w[:-1].astype(float) + w[-1]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    penalty = np.square(w[:-1].astype(float)).sum() * (2 if w.shape[1] == 2 else 1)
    return float(-log_p[np.arange(len(x)), labels].mean() + penalty / (2 * c * len(x)))


@pytest.mark.parametrize("n_classes", [2, 3, 6])
@pytest.mark.parametrize("c", [1e-3, 1e-1, 1.0])
def test_the_minimum_is_scikit_learns(n_classes: int, c: float) -> None:
    x, labels = rows(n_classes)
    model = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(x.astype(float), labels)
    theirs = np.concatenate([model.coef_.T, model.intercept_[None]])  # (D + 1, K), or one column for two classes
    if n_classes == 2:
        theirs = np.concatenate([-theirs / 2, theirs / 2], axis=1)
    ours = fit_softmax(x, labels, c, scales_of(x), tolerance=1e-5)
    assert objective(x, labels, c, ours) == pytest.approx(objective(x, labels, c, theirs), abs=1e-5)
    told, expected = (x @ w[:-1] + w[-1] for w in (ours, theirs))
    np.testing.assert_allclose(
        told - told.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=0.05
    )


def test_neither_the_scales_nor_the_start_move_the_minimum() -> None:
    x, labels = rows(4)
    flat = Scales(np.zeros((x.shape[1], 1), np.float32), np.zeros(1, np.float32), 1.0)
    plain, scaled = (fit_softmax(x, labels, 0.1, scales, tolerance=1e-6) for scales in (flat, scales_of(x)))
    warm = fit_softmax(x, labels, 0.1, scales_of(x), 1e-6, start=fit_softmax(x, labels, 1e-3, scales_of(x)))
    for other in (scaled, warm):
        assert objective(x, labels, 0.1, other) == pytest.approx(objective(x, labels, 0.1, plain), abs=1e-5)
    stays = fit_softmax(x, labels, 0.1, scales_of(x), 1.0, start=plain)
    np.testing.assert_allclose(stays, plain, atol=1e-4, err_msg="a start that is good enough is left as it is")


def test_scales_are_the_principal_directions() -> None:
    x, _ = rows(4, n=300, width=100)
    scales = scales_of(x)
    values = np.linalg.eigvalsh(x.astype(float).T @ x / len(x))[::-1]
    np.testing.assert_allclose(scales.variances[:20], values[:20], rtol=1e-3)
    assert scales.directions.shape == (100, 64)
    assert scales.variances.sum() + 36 * scales.rest == pytest.approx(values.sum(), rel=1e-5)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_weighted_f1_is_scikit_learns_bit_for_bit(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(pairs).T
    assert weighted_f1(truth, predicted) == f1_score(truth, predicted, average="weighted", zero_division=0)
