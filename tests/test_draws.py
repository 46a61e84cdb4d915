"""Which slides an epoch trains on: balanced over class and site, by the seed and the epoch only."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from papsmear.cohort import Slide
from papsmear.errors import UsageError
from papsmear.mil.draws import EpochOrder, cells_of, dues
from papsmear.seeds import rng


def slide(number: int, label: int, site: str = "") -> Slide:
    return Slide(f"s{number}", Path("s"), label, f"p{number}", 0, site, None, None, {"site": site, "scanner": "x"})


SLIDES = [slide(n, int(n < 6), "A" if n % 3 else "B") for n in range(60)]


def drawn(order: EpochOrder, epoch: int) -> list[int]:
    order.set_epoch(epoch)
    return list(order)


def test_without_a_balance_each_slide_comes_once() -> None:
    order = EpochOrder(60, 7, cells_of(SLIDES, "none"))
    for epoch in range(3):
        assert drawn(order, epoch) == rng(7, "bags", epoch).permutation(60).tolist()


@pytest.mark.parametrize("balance", ["class", "site", "scanner"])
def test_classes_and_the_sites_within_them_come_as_often(balance: str) -> None:
    order = EpochOrder(60, 7, cells_of(SLIDES, balance))  # type: ignore[arg-type]
    for epoch in range(20):
        found = drawn(order, epoch)
        assert len(found) == len(order) == 60
        labels = Counter(SLIDES[n].label for n in found)
        assert labels[1] == pytest.approx(30, abs=1)
        if balance == "site":
            cells = Counter((SLIDES[n].label, SLIDES[n].site) for n in found)
            assert all(count == pytest.approx(15, abs=1) for count in cells.values())
            assert len(cells) == 4


@given(labels=st.lists(st.tuples(st.integers(0, 1), st.sampled_from("AB")), min_size=1, max_size=40))
def test_a_slide_is_drawn_as_often_as_it_is_due(labels: list[tuple[int, str]]) -> None:
    due = dues(labels)
    assert due.sum() == pytest.approx(len(labels))
    order = EpochOrder(len(labels), 1, labels)
    for epoch in range(3):
        times = np.bincount(drawn(order, epoch), minlength=len(labels))
        assert (times >= np.floor(due - 1e-9)).all()
        assert (times <= np.ceil(due + 1e-9)).all()


def test_the_draw_depends_on_the_seed_and_the_epoch_only() -> None:
    cells = cells_of(SLIDES, "site")
    one, other = EpochOrder(60, 7, cells), EpochOrder(60, 7, cells)
    drawn(one, 0)
    assert drawn(one, 5) == drawn(other, 5)
    assert drawn(one, 6) != drawn(other, 5)
    assert drawn(EpochOrder(60, 8, cells), 5) != drawn(other, 5)


def test_slides_without_a_site_are_named() -> None:
    with pytest.raises(UsageError, match=r"data\.balance=site: no site in slides\.csv for s1, s2; fill the column"):
        cells_of([slide(0, 1, "A"), slide(1, 0), slide(2, 0)], "site")
