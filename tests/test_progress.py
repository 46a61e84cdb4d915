"""The bar is drawn on a terminal and silent elsewhere; messages come out as they are."""

import io

import pytest
from rich.console import Console

from papsmear import progress


@pytest.mark.parametrize("items", [[1, 2, 3], (i for i in (1, 2, 3)), {1: "a", 2: "b", 3: "c"}])
def test_all_items_come_in_order_and_nothing_is_printed(items: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(items, "tiling")) == [1, 2, 3]
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_terminal_gets_a_bar_with_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=stream, force_terminal=True, width=100))
    assert list(progress.track((i for i in range(5)), "tiling slides", total=5)) == [0, 1, 2, 3, 4]
    assert "tiling slides" in stream.getvalue()
    assert "/5" in stream.getvalue()


def test_a_message_keeps_its_brackets_and_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    message = "slide [red] " + "long/path/" * 30 + "a.svs: fails"
    progress.say(message)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", message + "\n")
