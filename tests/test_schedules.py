"""Schedules against NumPy's closed forms, as the official repository computes them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from papsmear.ssl.schedules import Schedules


def official(start: float, end: float, steps: int, warmup: int = 0) -> NDArray[np.float64]:
    """The repository's `cosine_scheduler`."""
    i = np.arange(steps - warmup)
    rest = end + 0.5 * (start - end) * (1 + np.cos(np.pi * i / len(i)))
    return np.concatenate((np.linspace(0, start, warmup), rest))


@pytest.fixture
def schedules() -> Schedules:
    return Schedules(
        steps=300,
        steps_per_epoch=10,
        peak_lr=0.5,
        min_lr=1e-3,
        warmup_epochs=4,
        weight_decay=(0.04, 0.4),
        ema_momentum=(0.996, 1.0),
        teacher_temperature=(0.04, 0.07),
        temperature_warmup_epochs=7,
    )


def test_every_step_is_the_official_one(schedules: Schedules) -> None:
    steps = range(300)
    np.testing.assert_allclose([schedules.lr(s) for s in steps], official(0.5, 1e-3, 300, 40), rtol=1e-12)
    np.testing.assert_allclose([schedules.decay(s) for s in steps], official(0.04, 0.4, 300), rtol=1e-12)
    np.testing.assert_allclose([schedules.momentum(s) for s in steps], official(0.996, 1, 300), rtol=1e-12)


def test_the_temperature_rises_by_epochs_and_stays(schedules: Schedules) -> None:
    wanted = np.concatenate((np.linspace(0.04, 0.07, 7), np.full(23, 0.07)))
    np.testing.assert_allclose([schedules.temperature(epoch) for epoch in range(30)], wanted)


@pytest.mark.parametrize("epochs", [0, 1, 30, 50])
def test_warm_ups_from_none_to_longer_than_the_run(schedules: Schedules, epochs: int) -> None:
    values = {**vars(schedules), "warmup_epochs": epochs, "temperature_warmup_epochs": epochs}
    lrs = [Schedules(**values).lr(step) for step in range(300)]
    assert max(lrs) == pytest.approx(0.5)
    assert lrs[0] == (0.5 if epochs == 0 else 0)
    assert Schedules(**values).temperature(60) == 0.07
