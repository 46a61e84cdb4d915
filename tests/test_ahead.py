"""Reading ahead keeps order, bound and errors, and leaves no thread behind."""

import threading
import time
from collections.abc import Iterator

import pytest

from papsmear.errors import InputError
from papsmear.mil.ahead import Ahead


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "papsmear-ahead"]


@pytest.mark.parametrize("n", [0, 1, 3, 50])
@pytest.mark.parametrize("size", [1, 4])
def test_all_items_come_in_their_order(n: int, size: int) -> None:
    with Ahead(lambda: iter(range(n)), size) as items:
        assert list(items) == list(range(n))
    assert _threads() == []


def test_items_are_made_while_others_are_used_but_no_further_ahead_than_asked() -> None:
    made, another = [], threading.Event()

    def make() -> Iterator[int]:
        for n in range(20):
            made.append(n)
            another.set()
            yield n

    with Ahead(make, 4) as items:
        for n, item in enumerate(items):
            assert item == n
            another.clear()
            while len(made) < min(20, n + 2):  # the next one is made although nobody asks for it
                assert another.wait(30)
            time.sleep(0.002)
            assert len(made) <= n + 1 + 4 + 1  # in hand, waiting, and begun


def test_an_error_of_the_making_comes_where_the_item_would_have_come() -> None:
    def make() -> Iterator[int]:
        yield 1
        yield 2
        raise InputError("slide.svs: damaged")

    got = []
    with Ahead(make, 8) as items, pytest.raises(InputError, match=r"slide\.svs: damaged"):
        got.extend(items)
    assert got == [1, 2]
    assert _threads() == []


def test_who_stops_early_waits_for_the_thread_and_what_it_opened_is_closed() -> None:
    closed = []

    def make() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.current_thread().name)

    with Ahead(make, 2) as items:
        assert next(iter(items)) == 1
    assert _threads() == []
    assert closed == ["papsmear-ahead"]
