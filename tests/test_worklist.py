"""A folder of slides: one list of all, and what is finished stays when the command is started again."""

import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from papsmear.cli import main
from papsmear.errors import InputError
from papsmear.mil.diagnose import diagnose
from papsmear.mil.diagnoser import load_diagnoser
from papsmear.mil.heads import build_head
from papsmear.mil.model import NAME, HeadCard, load_head, save_head
from papsmear.mil.worklist import Entry, write_worklist
from papsmear.page import RESEARCH_USE_ONLY
from papsmear.ssl.encoder import load_encoder
from papsmear.tiling.cut import TileSettings
from papsmear.tiling.phantom.identity import Identity
from papsmear.tiling.phantom.svs import write_svs
from papsmear.tiling.planes import open_planes

SIDE = 1920  # 3 x 3 tiles
SECRET = "MUELLER-2026"


def _draw_slide(path: Path, seed: int, side: int = SIDE) -> None:
    rgb = np.random.default_rng(seed).integers(60, 250, (side // 64, side // 64, 3), np.uint8)
    rgb = np.kron(rgb, np.ones((64, 64, 1), np.uint8))
    strips = (rgb[y : y + 256] for y in range(0, side, 256))
    write_svs(path, (side, side), strips, 0.25, Identity("A", "B", "01/02/03", "C"))


def _damage(slide: Path, tile: int) -> None:
    """Overwrites the data of one tile of the finest level."""
    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages[0]
        at, length = page.dataoffsets[tile], page.databytecounts[tile]
    with slide.open("r+b") as file:
        file.seek(at)
        file.write(bytes(length))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Slides a, b and c in `slides`, and a model in `run` that reads all of a slide."""
    (tmp_path / "slides").mkdir()
    for seed, name in enumerate("abc"):
        _draw_slide(tmp_path / "slides" / f"{name}.svs", seed)
    encoder = load_encoder("random:resnet10t", "cpu")
    torch.manual_seed(0)
    head = build_head("mean", encoder.width, {})
    head.std.fill_(0.02)
    card = HeadCard(
        head="mean", head_args={}, threshold=0.5, width=encoder.width, fold=0, encoder="random:resnet10t",
        encoder_sha256=encoder.card.sha256, tiles=TileSettings("all"), train_slides=(), validation_slides=(),
    )  # fmt: skip
    save_head(tmp_path / "run" / NAME, head, card)
    return tmp_path


def _run(folder: Path, *options: str) -> int:
    return main(["diagnose", f"{folder / 'slides'}", f"--model={folder / 'run'}", f"--out={folder / 'out'}", *options])


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "worklist.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _written(folder: Path) -> dict[str, int]:
    return {name: (folder / "out" / f"{name}.json").stat().st_mtime_ns for name in "abc"}


class _Page(HTMLParser):
    """The words of a page in the order of reading, and its links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words = ""
        self.links: list[str] = []
        self.feed(text)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_worklist_has_the_highest_first_and_at_the_end_what_was_not_judged(
    folder: Path, capfd: pytest.CaptureFixture
) -> None:
    _draw_slide(folder / "slides" / "small.svs", 9, 640)
    shutil.copy(folder / "slides" / "a.svs", folder / "slides" / f"{SECRET}.svs")
    _damage(folder / "slides" / f"{SECRET}.svs", 20)
    assert _run(folder, "--min_tiles=2") == 1
    told = capfd.readouterr().err
    assert re.search(rf"failed: {SECRET}: .*{SECRET}\.svs: damaged", told)  # on the terminal by its name
    rows = _rows(folder)
    probability = {name: json.loads((folder / "out" / f"{name}.json").read_text())["probability"] for name in "abc"}
    expected = sorted("abc", key=lambda name: -probability[name])
    assert [row["slide_id"] for row in rows] == [*expected, "small", SECRET]
    assert [row["probability"] for row in rows] == [*(f"{probability[name]:.6f}" for name in expected), "", ""]
    assert [row["decision"] for row in rows][3:] == ["not assessable", "failed"]
    assert rows[3]["reason"] == "too few tiles: 1, at least 2 are needed"
    assert "damaged" in rows[4]["reason"]
    assert {row["note"] for row in rows} == {RESEARCH_USE_ONLY}
    page = _Page((folder / "out" / "worklist.html").read_text(encoding="utf-8"))
    assert [link for link in page.links if link.endswith(".html")] == [f"{n}.html" for n in [*expected, "small"]]
    assert all((folder / "out" / link).is_file() for link in page.links)
    above = sum(value >= 0.5 for value in probability.values())
    assert f"{100 * above / 3:.0f} %{above} of 3 judged slides" in page.words
    assert RESEARCH_USE_ONLY in page.words
    assert str(folder) not in page.words


def test_damage_that_the_reading_thread_meets_is_told_as_such(folder: Path) -> None:
    slide = folder / "slides" / "a.svs"
    _damage(slide, 20)
    with open_planes(slide) as planes, pytest.raises(InputError, match=r"a\.svs: damaged .*tile 20"):
        load_diagnoser(folder / "run").diagnose("a", planes)
    assert [t.name for t in threading.enumerate() if t.name == "papsmear-ahead"] == []


def test_reasons_are_text_whatever_they_hold(tmp_path: Path) -> None:
    record = {"probability": 0.25, "decision": "below operating point", "operating_point": 0.5, "reasons": []}
    record |= {"model_saw_this_slide_in_training": []}
    page = write_worklist(tmp_path, [Entry("x", None, "<b>cut short</b>"), Entry("y", record)])
    text = page.read_text()
    assert "&lt;b&gt;cut short" in text
    assert "0 of 1 judged slides" in text


def test_nothing_judged_gives_a_list_too(tmp_path: Path) -> None:
    text = write_worklist(tmp_path, [Entry("x", None, "cut short")]).read_text()
    assert "0 of 0 judged slides" in text
    assert 'id="judged"' not in text


def test_what_is_finished_is_kept_and_what_has_changed_is_made_anew(folder: Path) -> None:
    assert _run(folder) == 0
    first = _written(folder)
    assert _run(folder) == 0
    assert _written(folder) == first
    _draw_slide(folder / "slides" / "b.svs", 77)  # the same name, another slide
    (folder / "out" / "c.json").unlink()  # as a run that was killed leaves it
    assert _run(folder) == 0
    second = _written(folder)
    assert [name for name in "abc" if second[name] != first[name]] == ["b", "c"]
    assert _run(folder, "--min_tiles=3") == 0
    third = _written(folder)
    assert all(third[name] != second[name] for name in "abc")
    assert [len(_rows(folder)), _run(folder, "--min_tiles=3"), _written(folder) == third] == [3, 0, True]


def test_another_head_judges_anew(folder: Path) -> None:
    assert _run(folder) == 0
    before = {row["slide_id"]: row["probability"] for row in _rows(folder)}
    trained = load_head(folder / "run")
    torch.nn.init.constant_(trained.head.head.classify.bias, 3.0)
    save_head(folder / "run" / NAME, trained.head, dataclasses.replace(trained.card, threshold=0.01))
    assert _run(folder) == 0
    rows = _rows(folder)
    assert all(row["probability"] != before[row["slide_id"]] for row in rows)
    assert {row["operating_point"] for row in rows} == {"0.010000"}


def test_a_slide_that_fails_now_leaves_nothing_of_an_earlier_diagnosis(folder: Path) -> None:
    assert _run(folder) == 0
    _damage(folder / "slides" / "b.svs", 30)
    assert _run(folder) == 1
    assert sorted(file.name for file in (folder / "out").glob("b*")) == []
    assert [row["slide_id"] for row in _rows(folder)][-1] == "b"


def test_one_slide_gives_no_worklist(folder: Path) -> None:
    assert diagnose([folder / "slides" / "a.svs"], folder / "run", folder / "one") == 0
    assert not list((folder / "one").glob("worklist*"))


def test_checksums_are_those_of_the_files(folder: Path) -> None:
    assert _run(folder) == 0
    record = json.loads((folder / "out" / "a.json").read_text())
    data = (folder / "slides" / "a.svs").read_bytes()
    assert record["slide"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert record["slide"]["bytes"] == len(data)
    assert record["model"]["head"]["sha256"] == hashlib.sha256((folder / "run" / NAME).read_bytes()).hexdigest()
    assert record["tile_settings"] == dataclasses.asdict(TileSettings("all"))
    assert os.fspath(folder) not in json.dumps(record)
