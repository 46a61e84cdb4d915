"""Locks: one holder at a time, nothing left behind, and what a killed process leaves stops nobody."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from papsmear.tiling.claim import can_claim, claim, lock_of

COUNT = """
import sys
from pathlib import Path
from papsmear.tiling.claim import claim

counter = Path(sys.argv[1])
for _ in range(300):
    with claim(counter, wait=True) as mine:
        assert mine
        counter.write_text(str(int(counter.read_text()) + 1))
"""
HOLD = """
import sys, time
from pathlib import Path
from papsmear.tiling.claim import claim

with claim(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_one_holder_at_a_time_and_no_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "slide"
    with claim(path) as first, claim(path) as second, claim(tmp_path / "other") as other:
        assert (first, second, other) == (True, False, True)
        assert lock_of(path).exists()
    assert list(tmp_path.iterdir()) == []
    with claim(path) as again:
        assert again
    with pytest.raises(ZeroDivisionError), claim(path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_processes_that_wait_for_each_other_lose_nothing(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", COUNT, str(counter)]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert counter.read_text() == "1200"
    assert list(tmp_path.iterdir()) == [counter]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "slide"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with claim(path) as mine:
            assert not mine
        process.send_signal(signal.SIGKILL)
    assert lock_of(path).exists()
    with claim(path) as mine:
        assert mine
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_claim(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []

    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)  # as Lustre does where it is mounted without flock
    assert not can_claim(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
