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


def sklearn_weights(x: NDArray[np.float32], labels: NDArray[np.int64], c: float) -> NDArray[np.float64]:
    """Weights and, in the last row, biases (D + 1, K) of scikit-learn's minimum; two classes as a vector for each."""
    model = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(x.astype(float), labels)
    found = np.concatenate([model.coef_.T, model.intercept_[None]])  # (D + 1, K), or one column for two classes
    return np.concatenate([-found / 2, found / 2], axis=1) if found.shape[1] == 1 else found


@pytest.mark.parametrize(("n_classes", "width"), [(2, 90), (3, 140), (6, 140)])
def test_the_minima_of_all_fits_at_once_are_scikit_learns(n_classes: int, width: int) -> None:
    """Three C's, on all rows and on four fifths; more columns than leading directions, and fewer."""
    x, labels = rows(n_classes, width=width)
    cs, fitted = (1e-3, 1e-1, 1.0), np.ones((2, len(x)), bool)
    fitted[1, ::5] = False
    found = fit_softmax(x, labels, fitted, cs, scales_of(x), tolerance=1e-10)
    assert found.shape == (3, 2, width + 1, n_classes)
    for c, of_c in zip(cs, found, strict=True):
        for kept, ours in zip(fitted, of_c, strict=True):
            theirs = sklearn_weights(x[kept], labels[kept], c)
            loss, least = (objective(x[kept], labels[kept], c, w) for w in (ours, theirs))
            assert loss == pytest.approx(least, abs=1e-5)
            told, expected = (x @ w[:-1] + w[-1] for w in (ours, theirs))
            np.testing.assert_allclose(
                told - told.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=0.05
            )


def test_a_class_that_the_rows_of_a_fit_lack_is_left_out_of_it() -> None:
    """Of four classes one, two or three are left: the fit is scikit-learn's to these, and predicts no other."""
    x, labels = rows(4)
    fitted = np.stack([labels < 3, labels < 2, labels < 1])
    three, two, one = fit_softmax(x, labels, fitted, [0.1], scales_of(x), tolerance=1e-10)[0]
    for kept, found, n in ((fitted[0], three, 3), (fitted[1], two, 2)):
        least = objective(x[kept], labels[kept], 0.1, sklearn_weights(x[kept], labels[kept], 0.1))
        assert objective(x[kept], labels[kept], 0.1, found[:, :n]) == pytest.approx(least, abs=1e-5)
        np.testing.assert_allclose(found[:, n:], 0, atol=1e-6)
    np.testing.assert_array_equal(one, 0)


def test_neither_the_scales_nor_the_company_move_the_minimum() -> None:
    x, labels = rows(4)
    whole = np.ones((1, len(x)), bool)
    flat = Scales(np.zeros((x.shape[1], 1), np.float32), np.zeros(1, np.float32), 1.0)
    plain, scaled = (fit_softmax(x, labels, whole, [0.1], scales, 1e-8)[0, 0] for scales in (flat, scales_of(x)))
    among = fit_softmax(x, labels, np.stack([labels != 2, whole[0]]), [1e-3, 0.1, 1.0], scales_of(x), 1e-8)[1, 1]
    for other in (scaled, among):
        assert objective(x, labels, 0.1, other) == pytest.approx(objective(x, labels, 0.1, plain), abs=1e-6)


def test_scales_are_the_principal_directions() -> None:
    x, _ = rows(4, n=300, width=160)
    scales = scales_of(x)
    values = np.linalg.eigvalsh(x.astype(float).T @ x / len(x))[::-1]
    np.testing.assert_allclose(scales.variances[:20], values[:20], rtol=1e-3)
    assert scales.directions.shape == (160, 128)
    assert scales.variances.sum() + 32 * scales.rest == pytest.approx(values.sum(), rel=1e-5)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_weighted_f1_is_scikit_learns_bit_for_bit(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(pairs).T
    assert weighted_f1(truth, predicted) == f1_score(truth, predicted, average="weighted", zero_division=0)
