"""The order of an epoch: every tile once, and every batch of as many slides as there are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from papsmear.ssl.order import OPEN, RUN, TileOrder, epoch_order

COHORTS = st.lists(st.integers(0, 300), min_size=1, max_size=40).filter(any)


def slides_of(of_slides: list[int], batch_size: int, seed: int, epoch: int = 0) -> NDArray[np.int64]:
    """The slide of each tile of each whole batch (batches, batch_size)."""
    slide_of = np.repeat(np.arange(len(of_slides)), of_slides)[epoch_order(of_slides, seed, epoch)]
    return slide_of[: len(slide_of) // batch_size * batch_size].reshape(-1, batch_size)


def fewest_slides(of_slides: list[int], batch_size: int, seed: int) -> int:
    """How many slides the poorest batch of an epoch shows."""
    ordered = np.sort(slides_of(of_slides, batch_size, seed), axis=1)
    return int((np.diff(ordered, axis=1) != 0).sum(axis=1).min()) + 1


@settings(max_examples=60)
@given(of_slides=COHORTS, seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_is_a_permutation(of_slides: list[int], seed: int, epoch: int) -> None:
    order = epoch_order(of_slides, seed, epoch)
    assert (np.sort(order) == np.arange(sum(of_slides))).all()
    assert (order == epoch_order(of_slides, seed, epoch)).all()


@settings(max_examples=60)
@given(of_slides=COHORTS, batch_size=st.integers(1, 96), seed=st.integers(0, 9))
def test_a_batch_holds_of_each_slide_what_is_its_share(of_slides: list[int], batch_size: int, seed: int) -> None:
    """Both bounds of `epoch_order`'s docstring, in every batch."""
    sizes, total = np.array(of_slides), sum(of_slides)
    batches = slides_of(of_slides, batch_size, seed)
    counts = np.stack([(batches == slide).sum(axis=1) for slide in range(len(sizes))], axis=1)  # (batches, S)
    n_slides = int((sizes > 0).sum())
    assert (counts <= np.ceil(sizes * (batch_size + n_slides) / total)).all()
    if batch_size > n_slides:
        assert (counts[:, sizes >= total / (batch_size - n_slides)] > 0).all()


@settings(max_examples=200)
@given(of_slides=st.lists(st.integers(100, 300), min_size=16, max_size=20), seed=st.integers(0, 999))
def test_a_batch_of_64_mixes_16_slides_of_a_small_cohort(of_slides: list[int], seed: int) -> None:
    assert fewest_slides(of_slides, 64, seed) >= 16


def test_a_batch_mixes_many_slides_of_a_large_cohort() -> None:
    """300 slides of 5,200 tiles in batches of 192: of equal slides each tile is another's, of unequal ones most are."""
    assert fewest_slides([5_200] * 300, 192, 0) == 192
    unequal = np.random.default_rng(0).lognormal(np.log(4_000), 0.7, 300).astype(int).tolist()
    assert max(unequal) > 5 * np.mean(unequal)
    assert fewest_slides(unequal, 192, 0) >= 100


@pytest.mark.parametrize("of_slides", [[20_000], [2_000] * 10, [5_200] * 100])
def test_reading_is_local(of_slides: list[int]) -> None:
    """Of the tiles that are shown while a run is used up, most are of few runs: no whole cohort is read at a time."""
    order = epoch_order(of_slides, 0, 0)
    stretch = order[: RUN * max(OPEN, len(of_slides))]
    assert len(np.unique(stretch // RUN)) <= 2.5 * max(OPEN, len(of_slides))


def test_the_tiles_of_one_slide_are_mixed() -> None:
    """A batch of a single slide comes from many runs, not from two."""
    order = epoch_order([5_000], 0, 0)
    assert len(np.unique(order[:64] // RUN)) >= 32


@pytest.mark.parametrize(("of_slides", "batch_size", "batches"), [([5], 6, 0), ([5], 5, 1), ([3, 4], 3, 2)])
def test_an_incomplete_last_batch_is_left_out(of_slides: list[int], batch_size: int, batches: int) -> None:
    order = TileOrder(of_slides, batch_size, seed=0)
    assert len(order) == len(list(order)) == batches
    assert all(len(batch) == batch_size for batch in order)
