"""Bootstrap intervals against closed forms, and weighted scores against scikit-learn on cells really repeated."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from papsmear.probes.bootstrap import interval, replicates, resamples
from papsmear.probes.classes import SIPAKMED
from papsmear.probes.scores import WEIGHTED, class_f1, f1_of_confusion, side_f1


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    x = np.random.default_rng(0).exponential(size=2000)
    drawn = resamples(np.arange(2000), seed=0, count=4000)
    low, high = interval(drawn @ x / 2000)
    half = 1.96 * x.std() / 2000**0.5
    assert low == pytest.approx(x.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(x.mean() + half, abs=0.05 * half)


def test_cells_of_one_picture_are_drawn_together_and_widen_the_interval_as_they_should() -> None:
    """Pictures of four equal cells: the sd of a mean is that of the 500 pictures, twice that of 2000 free cells."""
    of_picture = np.random.default_rng(1).normal(size=500)
    pictures = np.repeat(np.arange(500), 4)
    drawn = resamples(pictures, seed=0, count=4000)
    assert (drawn.reshape(-1, 500, 4).std(axis=-1) == 0).all()
    low, high = interval(drawn @ of_picture[pictures] / drawn.sum(axis=1))
    assert high - low == pytest.approx(2 * 1.96 * of_picture.std() / 500**0.5, rel=0.05)


def test_a_resample_scores_what_scikit_learn_gives_for_the_repeated_cells() -> None:
    generator = np.random.default_rng(2)
    tests = [generator.permutation(60)[:30] for _ in range(2)]
    truths = [generator.integers(0, 5, 30) for _ in tests]
    found = [np.where(generator.random(30) < 0.5, t, generator.integers(0, 5, 30)) for t in truths]
    drawn = resamples(np.arange(60), seed=0, count=20)
    ours = replicates(truths, found, tests, drawn, SIPAKMED)
    for b, times in enumerate(drawn.astype(int)):
        repeated = [
            (np.repeat(t, times[test]), np.repeat(p, times[test]))
            for t, p, test in zip(truths, found, tests, strict=True)
        ]
        expected = np.mean([f1_score(t, p, average="weighted", zero_division=0) for t, p in repeated])
        assert ours[WEIGHTED][b] == pytest.approx(expected)
        ts, ps = zip(*repeated, strict=True)
        for name, spread in side_f1(ts, ps, SIPAKMED).items():
            assert ours[name][b] == pytest.approx(spread.mean), name
        for label, (name, spread) in enumerate(class_f1(ts, ps, SIPAKMED).items()):
            known = [score for score, t in zip(spread.runs, ts, strict=True) if label in t]
            assert ours[name][b] == pytest.approx(np.mean(known) if known else np.nan, nan_ok=True), name


def test_one_seed_gives_one_interval_and_another_another() -> None:
    groups = np.repeat(np.arange(9), 3)
    np.testing.assert_array_equal(resamples(groups, 5), resamples(groups, 5))
    assert not np.array_equal(resamples(groups, 5), resamples(groups, 6))
    assert (resamples(groups, 5).sum(axis=1) == 27).all(), "as many pictures as there are"


def test_a_resample_without_any_test_cell_gives_no_nan() -> None:
    assert all(score == 0 for score in f1_of_confusion(np.zeros((5, 5)), SIPAKMED).values())


def test_a_resample_without_cells_of_a_class_says_nothing_of_it() -> None:
    """Two cells of the first class, each in a run of its own, all found: its F1 is 1 whatever is drawn."""
    truths = [np.array([0, 1, 1, 3, 3]), np.array([0, 1, 1, 3, 3])]
    tests = [np.arange(5), np.arange(5, 10)]
    drawn = resamples(np.arange(10), seed=0)
    ours = replicates(truths, truths, tests, drawn, SIPAKMED)
    first = SIPAKMED[0].short
    missing = (drawn[:, [0, 5]] == 0).all(axis=1)
    assert 0.05 < missing.mean() < 0.3
    np.testing.assert_array_equal(np.isnan(ours[first]), missing)
    assert interval(ours[first]) == (1, 1)
