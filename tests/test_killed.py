"""A run killed at any moment and started again leaves the same bytes as one that was let be, and nothing else."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from papsmear import seeds

KILLS = 20


def start(slides: Path, out: Path) -> subprocess.Popen[bytes]:
    """Small tiles, so that there is much to write: three shards a slide."""
    command = [sys.executable, "-m", "papsmear", "tile", f"--slides={slides}", f"--out={out}", "--workers=2"]
    return subprocess.Popen([*command, "--size_px=40", "--area=all"], stderr=subprocess.DEVNULL, start_new_session=True)


def contents(folder: Path) -> dict[str, str]:
    """Every file's checksum, and every folder, whatever its name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def wait_for_writing(process: subprocess.Popen[bytes], out: Path) -> None:
    """Until the run has begun to write, or ended."""
    while process.poll() is None and not list(out.glob(".*.lock")):
        time.sleep(0.005)


def finished(out: Path, names: list[str]) -> set[str]:
    return {name for name in names if (out / name).exists()}


def test_killed_at_random_times(small_slide: Any, tmp_path: Path) -> None:
    names, slides, out = ["a", "b", "c"], tmp_path / "slides.csv", tmp_path / "o"
    slides.write_text("slide_id,path\n" + "".join(f"{name},{small_slide.path}\n" for name in names))
    process = start(slides, tmp_path / "undisturbed")
    wait_for_writing(process, tmp_path / "undisturbed")
    began = time.monotonic()
    assert process.wait(60) == 0
    writing_s = time.monotonic() - began
    wanted = contents(tmp_path / "undisturbed")
    assert len(wanted) == 3 * (1 + 3 + 2) + 2

    random, moments = seeds.rng(0, "kills"), set()
    for _ in range(KILLS):
        process = start(slides, out)
        wait_for_writing(process, out)
        time.sleep(random.uniform(0, writing_s))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        found = contents(out)
        for name in finished(out, names):  # what has its name is whole
            inside = {path: digest for path, digest in found.items() if path.split("/")[0] == name}
            assert inside == {path: digest for path, digest in wanted.items() if path.split("/")[0] == name}
        moments.add(frozenset(path for path in found if path not in wanted))
        if finished(out, names) == set(names):
            shutil.rmtree(out)  # else the next ones would be killed while they do nothing
    assert len(moments) > 3, "the kills came at much the same moment"

    process = start(slides, out)
    assert process.wait(60) == 0
    assert contents(out) == wanted
