"""Worker processes: one that is killed is told of, and none outlives its run."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from papsmear.errors import UsageError
from papsmear.tiling.pool import checked_workers, each


def start_two_workers(path: Path, folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A run that has begun to write, and its worker processes."""
    slides, out = folder / "slides.csv", folder / "o"
    slides.write_text(f"slide_id,path\na,{path}\nb,{path}\n")
    command = [sys.executable, "-m", "papsmear", "tile", f"--slides={slides}", f"--out={out}", "--workers=2"]
    process = subprocess.Popen([*command, "--size_px=32", "--area=all"], stderr=subprocess.PIPE, text=True)
    while not list(out.glob(".*.part")):
        assert process.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return process, [int(c) for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_worker_is_reported_in_a_line(small_slide: Any, tmp_path: Path) -> None:
    with pytest.raises(BrokenProcessPool):
        list(each(os._exit, [3, 3], 2))
    process, workers = start_two_workers(small_slide.path, tmp_path)
    os.kill(workers[0], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker process was killed" in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


def test_no_worker_outlives_its_run(small_slide: Any, tmp_path: Path) -> None:
    process, workers = start_two_workers(small_slide.path, tmp_path)
    assert len(workers) == 2
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, workers))
    assert not list((tmp_path / "o").glob("[ab]"))


def test_as_many_workers_as_cores_unless_it_is_said() -> None:
    assert checked_workers(None) == len(os.sched_getaffinity(0))
    assert checked_workers(3) == 3
    with pytest.raises(UsageError, match="--workers=0: at least 1"):
        checked_workers(0)
