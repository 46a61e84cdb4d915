"""Probabilities that can be taken at their word; and the operating point."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, log_expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from papsmear.errors import UsageError
from papsmear.mil.calibration import Calibration, brier, calibrate, reliability
from papsmear.mil.operating import check_operating_point, choose_threshold

PRIOR = float(np.log(0.2 / 0.8))


def overconfident(n: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) at 20 % prevalence, and logits (n,) that are `temperature` times what the evidence says.

    Of x ~ N(y, 1/2), the logarithm of p(x | y = 1) / p(x | y = 0) is 2 x - 1.
    """
    random = np.random.default_rng(0)
    y = (random.random(n) < 0.2).astype(np.int64)
    x = y + np.sqrt(0.5) * random.normal(size=n)
    return y, temperature * (2 * x - 1)


def test_a_known_temperature_is_found() -> None:
    y, z = overconfident(40_000, 3.0)
    found = calibrate(y, z, PRIOR)
    assert found.temperature == pytest.approx(3, rel=0.03)
    p = found.probability(z)
    assert p.mean() == pytest.approx(y.mean(), abs=0.005)
    for bin_ in reliability(y, p, np.arange(len(y))):
        assert bin_.positive == pytest.approx(bin_.probability, abs=0.06)
    assert brier(y, p) < brier(y, expit(z)) - 0.05


def test_the_temperature_is_the_best_of_a_grid() -> None:
    y, z = overconfident(60, 4.0)
    targets = np.where(y == 1, (y.sum() + 1) / (y.sum() + 2), 1 / ((1 - y).sum() + 2))

    def loss(temperature: float) -> float:
        q = z / temperature + PRIOR
        return float(-(targets * log_expit(q) + (1 - targets) * log_expit(-q)).mean())

    grid = np.geomspace(0.05, 100, 4000)
    best = grid[np.argmin([loss(t) for t in grid])]
    assert calibrate(y, z, PRIOR).temperature == pytest.approx(best, rel=0.003)


def test_a_head_that_knows_nothing_gives_the_prevalence() -> None:
    y, z = np.tile([0, 0, 0, 0, 1], 20), np.repeat(np.linspace(-3, 3, 20), 5)  # every fifth at every logit
    assert calibrate(y, z, PRIOR).probability(z) == pytest.approx(0.2, abs=0.01)


@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
def test_the_order_and_so_the_auc_stay(seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    y, z = np.repeat([1, 0], [5, 9]), scale * random.normal(size=14)
    found = calibrate(y, z, PRIOR)
    assert np.isfinite(found.temperature)
    assert found.temperature > 0
    assert roc_auc_score(y, found.log_odds(z)) == roc_auc_score(y, z)


def test_slides_without_an_error_do_not_ask_for_certainty() -> None:
    y, z = np.array([0, 0, 0, 1, 1]), np.array([-9.0, -8, -7, 7, 8])
    p = calibrate(y, z, 0.0).probability(z)
    assert p[y == 1].max() < 0.9
    assert p[y == 0].min() > 0.1


def test_brier_and_reliability_are_those_of_scikit_learn() -> None:
    y, z = overconfident(500, 1.0)
    p = Calibration(1.0, PRIOR).probability(z)
    assert brier(y, p) == pytest.approx(brier_score_loss(y, p))
    positive, probability = calibration_curve(y, p, n_bins=10)
    bins = reliability(y, p, np.arange(500))
    assert [b.positive for b in bins] == pytest.approx(positive.tolist())
    assert [b.probability for b in bins] == pytest.approx(probability.tolist())
    assert sum(b.slides for b in bins) == 500
    assert reliability(np.array([1]), np.array([1.0]), np.array([0]))[0].slides == 1


# The operating point


@given(
    seed=st.integers(0, 10**6), m=st.integers(1, 12), n=st.integers(1, 12), wanted=st.sampled_from([0.1, 0.5, 0.95, 1])
)
def test_a_wanted_sensitivity_is_reached_at_the_highest_specificity(seed: int, m: int, n: int, wanted: float) -> None:
    random = np.random.default_rng(seed)
    y, p = np.repeat([1, 0], [m, n]), random.integers(0, 8, m + n) / 7
    threshold = choose_threshold(y, p, {"sensitivity": wanted})
    assert (p[y == 1] >= threshold).mean() >= wanted
    for other in np.unique(p):
        if (p[y == 1] >= other).mean() >= wanted:
            assert (p[y == 0] < other).mean() <= (p[y == 0] < threshold).mean()


def test_a_wanted_sensitivity_lies_in_the_middle_of_the_gap() -> None:
    y, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9])
    assert choose_threshold(y, p, {"sensitivity": 1.0}) == pytest.approx(0.4)
    assert choose_threshold(y, p, {"sensitivity": 0.5}) == pytest.approx(0.75)


@pytest.mark.parametrize("wanted", [0.0, -1.0, 1.5])
def test_a_sensitivity_that_is_none_is_refused(wanted: float) -> None:
    with pytest.raises(UsageError, match=r"model\.operating_point: sensitivity"):
        check_operating_point({"sensitivity": wanted})
