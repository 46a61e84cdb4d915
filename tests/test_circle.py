"""The circle under scattered cover: against the truth, against a search of everything, and with parts unknown."""

import numpy as np
import pytest
from numpy.typing import NDArray

from papsmear.tiling.circle import Circle, fit_circle


def disc(shape: tuple[int, int], x: float, y: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.asarray(np.hypot(columns + 0.5 - x, rows + 0.5 - y) <= radius)


def all_seen(covered: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.ones(covered.shape, np.float32)


def iou(circle: Circle | None, truth: NDArray[np.bool_]) -> float:
    assert circle is not None
    found = disc((truth.shape[0], truth.shape[1]), circle.x, circle.y, circle.radius)
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize("case", ["whole", "sparse", "cut off", "dusty", "full picture"])
def test_the_circle_under_scattered_cover(case: str) -> None:
    rng = np.random.default_rng(3)
    shape = (300, 260)
    x, y, radius = {"cut off": (60.0, 150.0, 90.0), "full picture": (130.0, 150.0, 128.0)}.get(
        case, (140.0, 130.0, 80.0)
    )
    truth = disc(shape, x, y, radius)
    covered = truth & (rng.random(shape) < (0.3 if case == "sparse" else 0.95))
    if case == "dusty":
        covered |= ~truth & (rng.random(shape) < 0.05)
        covered[:12] = True  # the cover slip's edge
    circle = fit_circle(covered, all_seen(covered))
    assert iou(circle, truth) > 0.97
    assert circle is not None
    assert circle.seen == pytest.approx({"cut off": 0.73, "full picture": 1.0}.get(case, 1.0), abs=0.03)
    assert circle.parted > 0.8
    assert circle.confidence == circle.seen * circle.parted


def log_likelihood(covered: NDArray[np.bool_]) -> float:
    """Of pixels that are each covered with the same chance, the likeliest."""
    share = covered.mean() if covered.size else 0.0
    return 0.0 if share in (0, 1) else float(covered.size * (share * np.log(share) + (1 - share) * np.log(1 - share)))


def test_no_circle_is_likelier() -> None:
    rng = np.random.default_rng(4)
    shape = (40, 44)
    covered = rng.random(shape) < np.where(disc(shape, 21.5, 18.5, 11.0), 0.7, 0.1)

    def gain(x: float, y: float, radius: float) -> float:
        inside = disc(shape, x, y, radius)
        return log_likelihood(covered[inside]) + log_likelihood(covered[~inside]) - log_likelihood(covered.ravel())

    everything = max(gain(x, y, r) for x in range(12, 32) for y in range(10, 30) for r in np.arange(3, 20, 0.5))
    circle = fit_circle(covered, all_seen(covered))
    assert circle is not None
    assert gain(circle.x, circle.y, circle.radius) > everything - 3  # rings are half a pixel wide


def test_what_tells_nothing_changes_nothing() -> None:
    truth = disc((200, 220), 100.0, 90.0, 60.0)
    weight = all_seen(truth)
    weight[:, 120:170] = 0
    covered = truth.copy()
    covered[:, 120:170] = True
    circle = fit_circle(covered, weight)
    assert iou(circle, truth) > 0.98
    covered[:, 120:170] = False
    assert fit_circle(covered, weight) == circle
    assert circle is not None
    assert circle.seen < 0.75


def test_what_tells_little_decides_where_nothing_else_does() -> None:
    truth = disc((200, 220), 100.0, 90.0, 60.0)
    weight = np.where(truth, np.float32(1), np.float32(0.1))
    circle = fit_circle(truth, weight)
    assert iou(circle, truth) > 0.98
    assert circle is not None
    assert circle.seen < 0.1  # nothing was seen outside


def test_no_clear_rim_where_there_is_no_disc() -> None:
    rng = np.random.default_rng(0)
    nothing = np.zeros((100, 80), bool)
    assert fit_circle(nothing, all_seen(nothing)) is None
    assert fit_circle(~nothing, all_seen(nothing)) is None
    assert fit_circle(~nothing, np.zeros((100, 80), np.float32)) is None
    evenly = rng.random((100, 80)) < 0.5
    circle = fit_circle(evenly, all_seen(evenly))
    assert circle is None or circle.confidence < 0.4
    stripes = np.zeros((100, 100), bool)
    stripes[45:55] = True
    circle = fit_circle(stripes, all_seen(stripes))
    assert circle is not None
    assert circle.confidence < 0.4


def test_a_ring_has_no_core() -> None:
    ring = disc((200, 200), 100.0, 100.0, 70.0) & ~disc((200, 200), 100.0, 100.0, 62.0)
    circle = fit_circle(ring, all_seen(ring))
    assert circle is not None
    assert circle.core < 0.01 < 0.15 < circle.inside
