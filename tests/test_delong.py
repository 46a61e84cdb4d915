"""AUCs, their covariance and their bootstrap against the formulas, written out."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from papsmear.mil.delong import delong, difference, mean_of_folds
from papsmear.mil.resampling import percentiles, resampled_aucs


def psi(x: float, y: float) -> float:
    return 1.0 if x > y else 0.5 if x == y else 0.0


def components(y: NDArray[np.int64], s: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """V10 and V01 of DeLong et al. 1988 (eq. 5 and 6), by their sums over all pairs."""
    positive, negative = s[y == 1], s[y == 0]
    return (
        [sum(psi(p, q) for q in negative) / len(negative) for p in positive],
        [sum(psi(p, q) for p in positive) / len(positive) for q in negative],
    )


def covariance(a: list[float], b: list[float]) -> float:
    return sum((x - np.mean(a)) * (z - np.mean(b)) for x, z in zip(a, b, strict=True)) / (len(a) - 1)


@given(m=st.integers(2, 9), n=st.integers(2, 9), levels=st.integers(2, 50), seed=st.integers(0, 10**6))
def test_aucs_and_covariance_are_those_of_the_direct_formula(m: int, n: int, levels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    y = random.permutation(np.repeat([1, 0], [m, n]))
    s = random.integers(0, levels, (3, m + n)).astype(float)  # few levels make ties
    found = delong(y, s)
    parts = [components(y, row) for row in s]
    for i, j in product(range(3), repeat=2):
        expected = covariance(parts[i][0], parts[j][0]) / m + covariance(parts[i][1], parts[j][1]) / n
        assert found.covariance[i, j] == pytest.approx(expected, abs=1e-12)
    assert found.auc == pytest.approx([roc_auc_score(y, row) for row in s])


def test_interval_and_paired_test_by_hand() -> None:
    y = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0])
    s = np.array([[9.0, 8, 4, 7, 5, 6, 1, 2, 3], [9.0, 5, 4, 1, 8, 6, 2, 3, 7]])
    aucs = delong(y, s)
    half = norm.ppf(0.975) * math.sqrt(aucs.covariance[1, 1])
    assert aucs.interval(1) == pytest.approx((max(0, aucs.auc[1] - half), min(1, aucs.auc[1] + half)))
    found = difference(aucs)
    sd = math.sqrt(aucs.covariance[0, 0] + aucs.covariance[1, 1] - 2 * aucs.covariance[0, 1])
    assert found.value == pytest.approx(roc_auc_score(y, s[0]) - roc_auc_score(y, s[1]))
    assert found.p == pytest.approx(2 * norm.cdf(-found.value / sd))
    assert found.interval == pytest.approx((found.value - 1.96 * sd, min(1, found.value + 1.96 * sd)), abs=1e-4)


def test_what_a_variance_of_0_or_one_slide_of_a_class_cannot_tell_is_none() -> None:
    perfect = delong(np.array([0, 0, 1, 1]), np.array([[1.0, 2, 3, 4]]))
    assert (perfect.auc[0], perfect.interval()) == (1, None)
    assert percentiles(resampled_aucs(np.array([0, 0, 1, 1]), np.array([[1.0, 2, 3, 4]]))[0]) is None
    one = delong(np.array([0, 0, 1]), np.array([[1.0, 3, 2], [2.0, 1, 3]]))
    assert (one.auc.tolist(), one.interval(), difference(one).p) == ([0.5, 1], None, None)
    same = difference(delong(np.array([0, 1, 0, 1]), np.array([[1.0, 2, 3, 4]] * 2)))
    assert (same.value, same.interval, same.p) == (0, None, None)


def test_folds_are_independent() -> None:
    """The variance of the mean over folds is that of DeLong's components put together fold by fold."""
    random = np.random.default_rng(3)
    y = np.repeat([1, 0], [5, 12])
    folds = [delong(y, random.normal(size=(2, 17)) + y) for _ in range(4)]
    found = mean_of_folds(folds)
    assert found.auc == pytest.approx(np.mean([fold.auc for fold in folds], axis=0))
    assert found.covariance == pytest.approx(sum(fold.covariance for fold in folds) / 16)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    y = np.repeat([1, 0], [40, 60])
    truth = norm.cdf(1 / math.sqrt(2))
    inside = 0
    for _ in range(400):
        low, high = delong(y, (random.normal(size=100) + y)[None]).interval() or (0, 0)
        inside += low <= truth <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_the_bootstrap_is_that_of_drawn_slides() -> None:
    """Resampled AUCs have the moments that drawing slides and scoring them anew gives, and DeLong's width."""
    random = np.random.default_rng(1)
    y = np.repeat([1, 0], [20, 35])
    noise = random.normal(size=(2, 55))
    s = np.round(np.stack([noise[0], noise[0] + 0.7 * noise[1]]) + y, 1)  # two heads that agree by and large
    found = resampled_aucs(y, s)
    drawn = []
    for _ in range(4000):
        positive, negative = s[:, random.choice(20, 20)], s[:, 20 + random.choice(35, 35)]
        pairs = positive[:, :, None] - negative[:, None]
        drawn.append((pairs > 0).mean(axis=(1, 2)) + (pairs == 0).mean(axis=(1, 2)) / 2)
    assert found.mean(axis=1) == pytest.approx(np.mean(drawn, axis=0), abs=0.01)
    assert np.cov(found) == pytest.approx(np.cov(np.transpose(drawn)), rel=0.15)
    assert np.cov(found) == pytest.approx(delong(y, s).covariance, rel=0.15)
    low, high = percentiles(found[0]) or (0, 0)
    assert np.mean((found[0] >= low) & (found[0] <= high)) == pytest.approx(0.95, abs=0.005)


def test_heads_are_resampled_alike() -> None:
    y = np.repeat([1, 0], [6, 9])
    s = np.random.default_rng(0).normal(size=15) + y
    found = resampled_aucs(y, np.stack([s, s, -s]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0] + found[2], 1)
    assert not np.array_equal(found[0], resampled_aucs(y, s[None], fold=1)[0])
