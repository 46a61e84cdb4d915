"""`papsmear verify`: a whole folder passes, one changed byte anywhere is found and named, and tile mends it."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from papsmear import seeds
from papsmear.cli import main
from papsmear.tiling.verify import find_damages


@pytest.fixture(scope="module")
def tiled(small_slide: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with slides.csv and o/, where two slides are tiled."""
    folder = tmp_path_factory.mktemp("tiled")
    (folder / "slides.csv").write_text(f"slide_id,path\na,{small_slide.path}\nb,{small_slide.path}\n")
    assert tile(folder / "o", folder) == 0
    return folder


def tile(out: Path, folder: Path) -> int:
    return main(["tile", f"--slides={folder / 'slides.csv'}", f"--out={out}", "--workers=1"])


@pytest.fixture
def copy(tiled: Path, tmp_path: Path) -> Path:
    """A copy of its o/."""
    subprocess.run(["cp", "-r", tiled / "o", tmp_path / "o"], check=True)
    return tmp_path / "o"


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def change(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)


def test_what_is_whole_passes(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(copy)
    assert main(["verify", str(copy)]) == 0
    assert capsys.readouterr().err == f"{copy}: 2 slides checked, all whole\n"
    assert contents(copy) == before


def test_a_damaged_tile_is_named_and_its_slide_made_again(
    copy: Path, tiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, tar = contents(copy), copy / "b" / "b-000000.tar"
    change(tar, 700)
    capsys.readouterr()
    for _ in range(2):
        assert main(["verify", str(copy)]) == 1
        first, last = capsys.readouterr().err.splitlines()
        assert first.startswith(f"{tar}: b_x")
        assert first.endswith(".jpg is damaged (its CRC differs)")
        assert last.startswith(f"{copy}: 2 slides checked, 1 damaged; start the same papsmear tile again")
    assert tile(copy, tiled) == 0
    said = capsys.readouterr().err
    assert "slide b is made again: papsmear verify found it damaged" in said
    assert "1 slides tiled (16 tiles), 1 done before, 0 failed" in said
    assert contents(copy) == before
    assert main(["verify", str(copy)]) == 0


def test_a_mark_goes_when_all_is_well_again(copy: Path) -> None:
    before, tar = contents(copy), copy / "a" / "a-000000.tar"
    change(tar, 700)
    assert main(["verify", str(copy)]) == 1
    assert (copy / "a" / "damaged.json").is_file()
    change(tar, 700)
    assert main(["verify", str(copy)]) == 0
    assert contents(copy) == before


def test_any_changed_byte_of_a_shard_is_found(copy: Path) -> None:
    tar = copy / "a" / "a-000000.tar"
    whole = tar.read_bytes()
    headers = [i for i in range(0, len(whole), 512) if whole[i : i + 3] == b"a_x"]
    places = [*headers[:3], headers[2] + 150, headers[1] + 520, len(whole) - 1]
    places += seeds.rng(0, "places").integers(0, len(whole), 40).tolist()
    for at in places:
        change(tar, at)
        damages = list(find_damages(tar.parent))
        assert damages, at
        assert all(damage.startswith("a-000000.tar: ") for damage in damages), damages
        tar.write_bytes(whole)
    change(tar, headers[4])  # the third tile's picture
    assert list(find_damages(tar.parent))[-1].endswith("14 of 16 tiles are lost (a header is damaged)")


def test_what_is_missing_or_cut_short_is_named(copy: Path) -> None:
    folder = copy / "a"
    tar = folder / "a-000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-512])
    assert list(find_damages(folder)) == [f"a-000000.tar has {len(whole) - 512} bytes instead of {len(whole)}"]
    tar.unlink()
    assert list(find_damages(folder)) == ["a-000000.tar: No such file or directory"]
    tar.write_bytes(whole)
    (folder / "overview.jpg").write_bytes((folder / "overview.jpg").read_bytes()[:-2])
    assert list(find_damages(folder)) == ["overview.jpg: missing or cut short"]
    for text in ("", "[]", '{"slide_id": "a", "settings": {}, "counts": {}}'):
        (folder / "slide.json").write_text(text)
        assert [damage.split(": ")[0] for damage in find_damages(folder)] == ["slide.json"]
    (folder / "slide.json").unlink()
    assert main(["verify", str(copy)]) == 1


def test_shards_without_checksums_are_read_tile_by_tile(write_shards: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_shards(tmp_path, "a", [np.full((32, 32, 3), 200, np.uint8)] * 3)
    (folder / "overview.jpg").write_bytes(b"\xff\xd9")
    assert "shards" not in json.loads((folder / "slide.json").read_text())
    assert list(find_damages(folder)) == []
    change(folder / "a-000000.tar", 700)
    assert list(find_damages(folder)) == ["a-000000.tar: a_x0_y0.jpg is damaged (its CRC differs)"]


def test_a_read_only_folder_is_checked_too(tiled: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["cp", "-r", tiled / "o", small_disk / "o"], check=True)
    change(small_disk / "o" / "a" / "a-000000.tar", 700)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert main(["verify", str(small_disk / "o")]) == 1
    assert capsys.readouterr().err.endswith("2 slides checked, 1 damaged; delete those folders\n")


def test_where_there_is_nothing_to_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "failed").mkdir()
    for folder, says in ((tmp_path, "no tiled slides in it"), (tmp_path / "none", "no such folder")):
        assert main(["verify", str(folder)]) == 2
        assert says in capsys.readouterr().err
