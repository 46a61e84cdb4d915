"""`papsmear tile` from the command line: what it makes, goes on with, refuses, and does when things break."""

import dataclasses
import errno
import fcntl
import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from papsmear.cli import main
from papsmear.tiling.claim import claim
from papsmear.tiling.cut import TileSettings, iter_tiles, plan
from papsmear.tiling.planes import open_planes
from papsmear.tiling.shards import read_slide_json, read_tiles


def slide_list(folder: Path, *rows: str, header: str = "slide_id,path") -> Path:
    file = folder / "slides.csv"
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def run(slides: Path, out: Path, *options: str) -> int:
    return main(["tile", f"--slides={slides}", f"--out={out}", "--workers=1", *options])


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("papsmear tile: error: ")
    assert error.count("\n") == 1
    return error


def test_a_slide_becomes_a_folder(small_slide: Any, tmp_path: Path, root: Path) -> None:
    out = tmp_path / "shards"
    status = run(
        slide_list(tmp_path, f"s1,{small_slide.path}"), out, f"-c={root / 'configs' / 'tiling.yaml'}", "--workers=1"
    )
    assert status == 0
    in_folder = {"s1", "s1/overview.jpg", "s1/s1-000000.tar", "s1/slide.json"}
    assert {str(file.relative_to(out)) for file in out.rglob("*")} == {"summary.csv", "summary.html", *in_folder}
    slide = read_slide_json(out / "s1")
    assert slide["source"].keys() == {"name", "bytes", "sha256_of_ends"}
    assert (slide["source"]["name"], slide["source"]["bytes"]) == ("small.tiff", small_slide.path.stat().st_size)
    assert (slide["size_level0"], slide["mpp"], slide["mpp_from"]) == ([2400, 2000], pytest.approx(0.5), "file")
    assert [level["size_px"] for level in slide["levels"]] == [[2400, 2000], [1200, 1000], [600, 500]]
    assert slide["settings"] == dataclasses.asdict(TileSettings())
    x, y, radius = slide["deposit"]["circle_level0"]
    places = [(320 * i, 320 * j) for j in range(6) for i in range(7)]
    inside = [(a, b) for a, b in places if math.hypot(a + 160 - x, b + 160 - y) <= radius]
    tiles = list(read_tiles(out / "s1"))
    assert [(meta["x_level0"], meta["y_level0"]) for meta, _ in tiles] == inside
    assert slide["counts"] == {"grid": 42, "tiles": len(inside), "shards": 1, "dropped": {}}
    tar = (out / "s1" / "s1-000000.tar").read_bytes()
    shard = {"name": "s1-000000.tar", "tiles": len(inside), "bytes": len(tar), "crc32": zlib.crc32(tar)}
    assert slide["shards"] == [shard]
    for name in ("focus", "content"):
        assert slide[name]["median"] == pytest.approx(np.median([meta[name] for meta, _ in tiles]), abs=1e-3)
    for meta, jpeg in tiles:
        at = (slice(meta["y_level0"], meta["y_level0"] + 320), slice(meta["x_level0"], meta["x_level0"] + 320))
        assert (
            np.abs(simplejpeg.decode_jpeg(jpeg) - small_slide.rgb[at].astype(float)).mean() < 4
        )  # the slide's noise is 3 strong
        assert (meta["slide_id"], meta["size_level0"], meta["size_px"], meta["mpp"], meta["z"]) == (
            "s1",
            320,
            320,
            0.5,
            0,
        )
    text = (out / "s1" / "slide.json").read_text()
    assert str(small_slide.path.parent) not in text


def test_tiles_without_a_disk_are_those_of_the_shards(small_slide: Any, tmp_path: Path) -> None:
    settings = TileSettings("tissue", 100, 0.8)
    assert (
        run(
            slide_list(tmp_path, f"s1,{small_slide.path}"),
            tmp_path / "o",
            "--area=tissue",
            "--size_px=100",
            "--tile_mpp=0.8",
        )
        == 0
    )
    with open_planes(small_slide.path) as planes:
        made = [(t.meta("s1"), t.jpeg) for t in iter_tiles(planes, settings, plan(planes.middle, settings))]
    assert made == list(read_tiles(tmp_path / "o" / "s1"))
    assert len(made) > 50


def test_processes_go_on_where_a_run_stopped(
    small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = slide_list(tmp_path, *(f"s{i},{small_slide.path}" for i in range(3)))
    alone, several = tmp_path / "alone", tmp_path / "several"
    assert run(slides, alone) == 0
    shutil.copytree(alone / "s1", several / "s1")
    before = (several / "s1" / "slide.json").stat().st_mtime_ns
    (several / ".s2.part").mkdir()
    (several / ".s2.part" / "s2-000000.tar").write_bytes(b"what a killed run left")
    assert run(slides, several, "--workers=2") == 0
    assert contents(several) == contents(alone)
    assert (several / "s1" / "slide.json").stat().st_mtime_ns == before
    assert "2 slides tiled" in capsys.readouterr().err


def test_other_settings_are_refused(small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides, out = slide_list(tmp_path, f"s1,{small_slide.path}"), tmp_path / "o"
    assert run(slides, out) == 0
    before = contents(out)
    capsys.readouterr()
    assert run(slides, out, "--size_px=256", "--area=all") == 2
    error = only_error(capsys)
    assert f"{out}/s1: made with area disc instead of all, size_px 320 instead of 256; delete it" in error
    moved = shutil.copy(small_slide.path, tmp_path / "moved.tiff")
    assert run(slide_list(tmp_path, f"s1,{moved}"), out) == 0  # the same slide under another name
    capsys.readouterr()
    with moved.open("r+b") as file:
        file.seek(100)
        file.write(b"other")
    assert run(slides, out) == 2
    assert f"{out}/s1: made with another slide file than {moved}" in only_error(capsys)
    assert contents(out) == before


def test_what_is_damaged_is_made_again(small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides, out = slide_list(tmp_path, *(f"s{i},{small_slide.path}" for i in range(6))), tmp_path / "o"
    assert run(slides, out) == 0
    before, kept = contents(out), (out / "s5" / "slide.json").stat().st_mtime_ns
    (out / "s0" / "slide.json").write_text('{"slide_id": ')
    (out / "s1" / "slide.json").unlink()
    (out / "s2" / "s2-000000.tar").unlink()
    (out / "s3" / "overview.jpg").unlink()
    os.truncate(out / "s4" / "s4-000000.tar", 10240)
    capsys.readouterr()
    assert run(slides, out) == 0
    said = capsys.readouterr().err
    for slide_id, why in {
        "s0": "Expecting value", "s1": "slide.json'", "s2": "s2-000000.tar: No such file",
        "s3": "overview.jpg is missing", "s4": "s4-000000.tar has 10240 bytes instead of ",
    }.items():  # fmt: skip
        assert re.search(rf"^slide {slide_id} is made again: .*{re.escape(why)}", said, re.MULTILINE), said
    assert "5 slides tiled (80 tiles), 1 done before, 0 failed" in said
    assert contents(out) == before
    assert (out / "s5" / "slide.json").stat().st_mtime_ns == kept


def test_no_file_of_others_is_removed(small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides, out = slide_list(tmp_path, f"s1,{small_slide.path}"), tmp_path / "o"
    (out / "s1").mkdir(parents=True)
    (out / "s1" / "thesis.txt").write_text("mine")
    assert run(slides, out) == 2
    assert f"{out}/s1: not whole" in (error := only_error(capsys))
    assert "thesis.txt; move it away" in error
    assert contents(out).keys() == {"s1/thesis.txt"}
    (out / "s1" / "thesis.txt").unlink()
    assert run(slides, out) == 0  # an empty folder is what a run leaves that was killed while it removed one


def test_what_killed_runs_left_of_finished_slides_goes(small_slide: Any, tmp_path: Path) -> None:
    slides, out = slide_list(tmp_path, f"s1,{small_slide.path}"), tmp_path / "o"
    assert run(slides, out) == 0
    before = contents(out)
    (out / ".s1.lock").touch()
    (out / ".s1.part").mkdir()
    (out / "failed").mkdir()
    for name in ("s1.json", ".s1.jpg.part"):
        (out / "failed" / name).write_text("{}")
    assert run(slides, out) == 0
    assert contents(out) == before


def start(slides: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "papsmear", "tile", f"--slides={slides}", f"--out={out}", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def numbers(process: subprocess.Popen[str]) -> list[int]:
    """Slides tiled, tiles, done before, failed and, where it is said, left to another process."""
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    (line,) = [line for line in error.splitlines() if "slides tiled" in line]
    return [int(n) for n in re.findall(r"\d+", line.rpartition(": ")[2])]


def test_processes_share_a_list_and_write_no_slide_twice(small_slide: Any, tmp_path: Path) -> None:
    slides, settings = slide_list(tmp_path, *(f"s{i},{small_slide.path}" for i in range(6))), ("--size_px=48",)
    assert run(slides, tmp_path / "alone", *settings) == 0
    found = [
        numbers(process) for process in [start(slides, tmp_path / "o", *settings, f"--workers={n}") for n in (1, 2, 1)]
    ]
    assert sum(tiled for tiled, *_ in found) == 6, found
    assert all(tiled + before + failed + sum(left) == 6 for tiled, _, before, failed, *left in found), found
    assert contents(tmp_path / "o") == contents(tmp_path / "alone")


def test_a_slide_that_another_process_writes_is_left_to_it(
    small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides, out = slide_list(tmp_path, f"s1,{small_slide.path}", f"s2,{small_slide.path}"), tmp_path / "o"
    out.mkdir()
    with claim(out / "s1"):
        (out / ".s1.part").mkdir()
        assert run(slides, out) == 0
        assert (
            "1 slides tiled (16 tiles), 0 done before, 0 failed, 1 left to another process" in capsys.readouterr().err
        )
        assert (out / ".s1.part").exists()
        assert not (out / "s1").exists()


def test_shares_make_the_list_together(small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides = slide_list(tmp_path, *(f"s{i},{small_slide.path}" for i in range(5)))
    for share, names in {"2/2": {"s1", "s3"}, "1/2": {"s0", "s1", "s2", "s3", "s4"}}.items():
        assert run(slides, tmp_path / "o", f"--share={share}") == 0
        assert {file.parent.name for file in (tmp_path / "o").glob("*/slide.json")} == names
    assert "3 slides tiled (48 tiles), 0 done before" in capsys.readouterr().err
    assert run(slides, tmp_path / "o", "--share=7/9") == 0  # more shares than slides


def test_without_locks_the_user_says_that_no_other_works(
    small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)  # as on Lustre mounted without flock
    slides, out = slide_list(tmp_path, f"s1,{small_slide.path}", f"s2,{small_slide.path}"), tmp_path / "o"
    assert run(slides, out) == 2
    assert "has no locks" in only_error(capsys)
    assert run(slides, out, "--share=2/2") == 0
    assert "no summary" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["s2"]
    assert run(slides, out, "--share=1/1") == 0
    assert {file.name for file in out.iterdir()} == {"s1", "s2", "summary.csv", "summary.html"}


def test_the_mpp_of_a_slide_without_one(
    write_tiff: Callable[..., Path], small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_tiff(tmp_path / "bare.tiff", small_slide.rgb, None)
    header = "slide_id,path,mpp"
    assert run(slide_list(tmp_path, f"s1,{bare},", header=header), tmp_path / "o") == 1
    assert "slide s1 failed: " in (error := capsys.readouterr().err)
    assert "column mpp of slides.csv" in error
    assert run(slide_list(tmp_path, f"s1,{bare},0.5", f"s2,{bare},", header=header), tmp_path / "o", "--mpp=0.25") == 0
    found = [read_slide_json(tmp_path / "o" / name) for name in ("s1", "s2")]
    assert [(s["mpp"], s["mpp_from"], s["tile_size_level0"]) for s in found] == [
        (0.5, "given", 320),
        (0.25, "given", 640),
    ]
    assert run(slide_list(tmp_path, f"s1,{bare},0.25", header=header), tmp_path / "o") == 2
    assert "slide mpp 0.5 instead of 0.25" in capsys.readouterr().err


def test_failing_slides_stop_no_other(
    write_tiff: Callable[..., Path], small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = small_slide.path.read_bytes()
    (tmp_path / "empty.svs").touch()
    (tmp_path / "text.svs").write_text("no slide")
    (tmp_path / "cut.tiff").write_bytes(content[: len(content) // 3])
    write_tiff(tmp_path / "blank.tiff", np.full((1000, 1000, 3), 240, np.uint8))
    write_tiff(tmp_path / "coarse.tiff", small_slide.rgb, 1.0)
    names = ("empty.svs", "text.svs", "cut.tiff", "blank.tiff", "coarse.tiff")
    rows = [f"{name.replace('.', '_')},{name}" for name in names]
    assert run(slide_list(tmp_path, *rows, f"good,{small_slide.path}"), tmp_path / "o", "--workers=2") == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    *lines, last = error.splitlines()
    assert len(lines) == 6
    assert last == f"overviews, counts and warnings of all slides: {tmp_path}/o/summary.html"
    for name, reason in {
        "empty.svs": "is empty", "text.svs": "not a whole-slide image", "cut.tiff": "cut short",
        "blank.tiff": "no round cell deposit found", "coarse.tiff": "slide has 1 µm/px",
    }.items():  # fmt: skip
        (line,) = [line for line in lines if f"/{name}: " in line]
        assert line.startswith(f"slide {name.replace('.', '_')} failed: ")
        assert reason in line
    assert lines[-1].endswith("1 slides tiled (16 tiles), 0 done before, 5 failed")
    assert {file.name for file in (tmp_path / "o").iterdir()} == {"good", "failed", "summary.csv", "summary.html"}


def test_a_deposit_smaller_than_a_tile_is_no_silent_zero(
    small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(slide_list(tmp_path, f"s1,{small_slide.path}"), tmp_path / "o", "--size_px=4096") == 1
    assert "no tile of 4096 px at 0.5 µm/px fits" in capsys.readouterr().err


def test_all_tiles_left_out_is_no_silent_zero(
    small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides, out = slide_list(tmp_path, f"s1,{small_slide.path}"), tmp_path / "o"
    assert run(slides, out, "--min_focus=1e9") == 1
    assert "all tiles are left out (16 for their focus); lower --min_focus" in capsys.readouterr().err
    assert not (out / "s1").exists()


@pytest.mark.parametrize(
    ("rows", "options", "reasons"),
    [
        (["a,x.svs", "a,x.svs"], [], ["already in line 2", "no such file"]),
        (["a.b,x.svs"], [], ["use 'a_b'"]),
        (["a,"], [], ["path is empty"]),
        ([], [], ["no slides in it"]),
        (["a,."], ["--size_px=3"], ["3 px", "32 to 4096"]),
        (["a,."], ["--tile_mpp=0"], ["0 µm/px"]),
        (["a,."], ["--quality=101"], ["quality 101"]),
        (["a,."], ["--mpp=25"], ["--mpp=25"]),
        (["a,."], ["--workers=0"], ["--workers=0"]),
        (["a,."], ["--share=3/2"], ["--share=3/2"]),
        (["a,."], ["--share=half"], ["--share=half"]),
        (["failed,."], [], ["slide_id 'failed'"]),
    ],
)
def test_what_cannot_be_run_as_asked(
    rows: list[str], options: list[str], reasons: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(slide_list(tmp_path, *rows), tmp_path / "o", *options) == 2
    error = only_error(capsys)
    assert all(reason in error for reason in reasons), error
    assert not (tmp_path / "o").exists()


def test_odd_labels_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(slide_list(tmp_path, "a,.,HSIL", "b,.,2", header="slide_id,path,label"), tmp_path / "o") == 2
    error = only_error(capsys)
    assert "line 2: label 'HSIL'" in error
    assert "line 3: label '2'" in error


def test_out_must_be_a_folder(small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides = slide_list(tmp_path, f"s1,{small_slide.path}")
    assert run(slides, slides) == 2
    assert "--out is a file" in only_error(capsys)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(
    small_slide: Any, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    slides, out = slide_list(tmp_path, f"s0,{small_slide.path}"), small_disk / "o"
    assert run(slides, out) == 0
    before = contents(out)
    capsys.readouterr()
    slide_list(tmp_path, *(f"s{i},{small_slide.path}" for i in range(3)))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    assert run(slides, out, f"--workers={workers}") == 1
    assert re.search(rf"{out}/s[12]: No space left on device; free some space", only_error(capsys))
    assert contents(out) == before
    assert not list(out.glob(".*"))
    filler.unlink()
    assert run(slide_list(tmp_path, *(f"s{i},{small_slide.path}" for i in range(2))), out) == 0


def test_the_tiler_does_not_import_what_is_slow() -> None:
    heavy = ("torch", "lightning", "wandb", "matplotlib", "pandas", "jinja2")
    code = f"import sys, papsmear.tiling.tile; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
