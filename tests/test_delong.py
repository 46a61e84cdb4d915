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
from papsmear.mil.resampling import RESAMPLES, percentiles, resampled_aucs
from papsmear.seeds import rng


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


@given(slides=st.integers(4, 14), patients=st.integers(2, 9), levels=st.integers(2, 50), seed=st.integers(0, 10**6))
def test_slides_of_one_patient_are_reckoned_with(slides: int, patients: int, levels: int, seed: int) -> None:
    """Obuchowski 1997: S10, S01 and S11 of two heads, by sums over patients with slides of either class or of both."""
    random = np.random.default_rng(seed)
    y = random.permutation(np.repeat([1, 0, 1, 0], [1, 1, slides // 2 - 1, slides - slides // 2 - 1]))
    s = random.integers(0, levels, (2, slides)).astype(float)
    whose = random.integers(0, patients, slides)
    found = delong(y, s, whose)
    m, n, every = sum(y), sum(1 - y), sorted(set(whose))
    with_positive, with_negative = set(whose[y == 1]), set(whose[y == 0])
    if min(len(with_positive), len(with_negative)) < 2:
        assert np.isnan(found.covariance).all()
        return
    excess = []  # of each head, of each patient: sum of V10 less m_i AUC, and sum of V01 less n_i AUC
    for row in s:
        auc = roc_auc_score(y, row)
        v10, v01 = components(y, row)
        excess.append([
            (
                sum(v - auc for v, one in zip(v10, whose[y == 1], strict=True) if one == i),
                sum(v - auc for v, one in zip(v01, whose[y == 0], strict=True) if one == i),
            )
            for i in every
        ])  # fmt: skip
    for a, b in product(range(2), repeat=2):
        pairs = list(zip(excess[a], excess[b], strict=True))
        s10 = len(with_positive) / (len(with_positive) - 1) / m * sum(x[0] * z[0] for x, z in pairs)
        s01 = len(with_negative) / (len(with_negative) - 1) / n * sum(x[1] * z[1] for x, z in pairs)
        s11, s11_turned = (len(every) / (len(every) - 1) * sum(x[j] * z[1 - j] for x, z in pairs) for j in (0, 1))
        expected = s10 / m + s01 / n + (s11 + s11_turned) / (m * n)
        assert found.covariance[a, b] == pytest.approx(expected, abs=1e-12)


@given(m=st.integers(2, 9), n=st.integers(2, 9), seed=st.integers(0, 10**6))
def test_one_slide_a_patient_is_delong_and_a_copy_of_each_slide_tells_nothing(m: int, n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    y = random.permutation(np.repeat([1, 0], [m, n]))
    s = random.normal(size=(2, m + n))
    alone, whose = delong(y, s).covariance, random.permutation(m + n)
    np.testing.assert_array_equal(delong(y, s, np.arange(m + n) + 7).covariance, alone)
    np.testing.assert_allclose(delong(y, s, whose).covariance, alone, atol=1e-12)
    twice = delong(np.tile(y, 2), np.tile(s, 2), np.tile(whose, 2))
    np.testing.assert_allclose(twice.covariance, alone, atol=1e-12)


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
    y, s = np.array([0, 0, 1, 1]), np.array([[1.0, 3, 2, 4]])
    assert delong(y, s, np.array([0, 1, 2, 2])).interval() is None  # both positive slides of one patient
    assert delong(y, s, np.zeros(4, int)).interval() is None
    assert percentiles(resampled_aucs(y, s, patients=np.zeros(4, int))[0]) is None


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


def test_one_slide_a_patient_is_the_bootstrap_of_slides() -> None:
    """The same draws, so the same intervals: those of as many positive and as many negative slides, drawn in turn."""
    y, s = np.random.default_rng(2).permutation(np.repeat([1, 0], [7, 12])), np.random.default_rng(3).normal(size=19)
    random = rng(0, "bootstrap", 5)
    positive, negative = (random.multinomial(k, np.full(k, 1 / k), RESAMPLES) / k for k in (7, 12))
    expected = np.einsum("bp,bn,pn->b", positive, negative, s[y == 1][:, None] > s[y == 0])
    np.testing.assert_allclose(resampled_aucs(y, s[None], 5)[0], expected, rtol=1e-12)
    np.testing.assert_array_equal(resampled_aucs(y, s[None], 5, np.arange(19)), resampled_aucs(y, s[None], 5))


def test_patients_are_drawn_with_all_their_slides() -> None:
    """A copy of each slide changes nothing; of each kind as many patients are drawn; the width is Obuchowski's."""
    random = np.random.default_rng(4)
    y, s = np.repeat([1, 0], [15, 25]), random.normal(size=(1, 40))
    twice = resampled_aucs(np.tile(y, 2), np.tile(s, 2), patients=np.tile(np.arange(40), 2))
    np.testing.assert_allclose(twice, resampled_aucs(y, s), rtol=1e-12)
    whose = np.array([0, 1, 1, 2, 2, 3])  # one patient has a slide of either class, and of two with negative ones
    found = resampled_aucs(np.array([1, 1, 0, 0, 0, 0]), np.array([[5.0, 1, 2, 3, 3, 0]]), patients=whose)
    values, counts = np.unique(np.round(found, 9), return_counts=True)
    assert values == pytest.approx([(1 + 0) / 2, (1 + 1 / 4) / 2, (1 + 2 / 3) / 2])
    assert counts / RESAMPLES == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
    whose = np.repeat(np.arange(60), 2)
    y = np.repeat(np.arange(60) % 3 == 0, 2).astype(int)
    y[::8] = 1 - y[::8]  # some patients have a slide of either class
    s = (np.repeat(random.normal(size=60), 2) + 0.3 * random.normal(size=120) + y)[None]
    spread = np.var(resampled_aucs(y, s, patients=whose))
    assert spread == pytest.approx(delong(y, s, whose).covariance[0, 0], rel=0.15)
    assert spread > 1.2 * delong(y, s).covariance[0, 0]


def test_heads_are_resampled_alike() -> None:
    y = np.repeat([1, 0], [6, 9])
    s = np.random.default_rng(0).normal(size=15) + y
    found = resampled_aucs(y, np.stack([s, s, -s]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0] + found[2], 1)
    assert not np.array_equal(found[0], resampled_aucs(y, s[None], fold=1)[0])
