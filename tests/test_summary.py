"""The cohort's summary: a row a slide, every warning where it belongs, and a page that holds its pictures."""

import base64
import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

from papsmear.cli import main
from papsmear.tiling.summary import PICTURES, write_summary


def about(slide_id: str, **more: Any) -> dict[str, Any]:
    """The slide.json of a slide that nothing is to be said against."""
    return {
        "slide_id": slide_id, "size_level0": [1000, 800], "mpp": 0.25, "mpp_from": "file", "reader": "jpeg",
        "deposit": {"confidence": 0.9, "circle_level0": [500, 400, 300], "diameter_mm": 0.15},
        "counts": {"tiles": 1000, "shards": 0, "dropped": {"focus": 3, "content": 4}},
        "focus": {"median": 80.0}, "content": {"median": 0.4}, "settings": {}, **more,
    }  # fmt: skip


def put(out: Path, slide_id: str, picture: bytes = b"", **more: Any) -> None:
    folder = out / slide_id
    folder.mkdir(parents=True)
    (folder / "slide.json").write_text(json.dumps(about(slide_id, **more)))
    (folder / "overview.jpg").write_bytes(picture)


def noise(height: int, width: int, seed: int = 0) -> bytes:
    """The JPEG of a picture as full of detail as a slide."""
    coarse = np.random.default_rng(seed).integers(0, 255, (height // 6, width // 6, 3), np.uint8)
    return bytes(simplejpeg.encode_jpeg(cv2.resize(coarse, (width, height)), 85))


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def pictures(page: str) -> dict[str, NDArray[np.uint8]]:
    """The pictures on a page by their descriptions."""
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="([^"]+)"', page)
    return {what: simplejpeg.decode_jpeg(base64.b64decode(data)) for data, what in found}


def test_every_row_and_warning(tmp_path: Path) -> None:
    ordinary = [f"s{i}" for i in range(6)]
    for slide_id in ordinary:
        put(tmp_path, slide_id)
    put(tmp_path, "unsure", deposit={"confidence": 0.31, "circle_level0": None})
    put(tmp_path, "cut", deposit={"confidence": 0.8, "circle_level0": [280, 400, 300], "diameter_mm": 0.15})
    put(tmp_path, "small", deposit={"confidence": 0.8, "circle_level0": [500, 400, 200], "diameter_mm": 0.1})
    put(tmp_path, "blurred", focus={"median": 12.34})
    put(tmp_path, "few", counts={"tiles": 499, "shards": 0})
    put(tmp_path, "given", mpp_from="given")
    put(tmp_path, "damaged", counts={"tiles": 1, "shards": 1})
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "bad.json").write_text('{"reason": "cut <short>"}')
    odd = ["unsure", "cut", "small", "blurred", "few", "given", "damaged", "bad", "later"]
    page = write_summary(tmp_path, [*ordinary, *odd]).read_text()
    rows = table(tmp_path)
    assert list(rows) == [*ordinary, *odd]
    assert rows["s0"] == {
        "slide_id": "s0", "status": "done", "tiles": "1000", "dropped": "7", "diameter_mm": "0.15", "confidence": "0.9",
        "mpp": "0.25", "reader": "jpeg", "focus": "80", "content": "0.4", "warnings": "", "reason": "",
    }  # fmt: skip
    assert {name: row["warnings"] for name, row in rows.items() if row["warnings"]} == {
        "unsure": "unsure where the deposit is (confidence 0.31)",
        "cut": "the deposit is cut off at the slide's edge",
        "small": "a deposit of 0.1 mm (the cohort's median is 0.15 mm)",
        "blurred": "blurred (focus 12.3, the cohort's median is 80.0)",
        "few": "few tiles (499, the cohort's median is 1,000)",
        "given": "µm/px not from the file (0.25 was given)",
    }
    assert [rows[name]["status"] for name in ("damaged", "bad", "later")] == ["damaged", "failed", "not yet"]
    assert rows["damaged"]["reason"] == "damaged-000000.tar: No such file or directory"
    assert rows["bad"]["reason"] == "cut <short>"
    assert "cut &lt;short&gt;" in page
    assert "http" not in page
    found = [page.index(f"<b>{name}</b>") for name in ("bad", "damaged", "unsure", "s0")]
    assert found == sorted(found)  # failures first, then warnings, then the others


def test_a_small_cohort_has_no_median_to_compare_with(tmp_path: Path) -> None:
    for i, focus in enumerate((100.0, 90.0, 1.0)):
        put(tmp_path, f"s{i}", focus={"median": focus})
    write_summary(tmp_path, ["s0", "s1", "s2"])
    assert not any(row["warnings"] for row in table(tmp_path).values())


def test_a_page_of_300_slides_stays_below_10_mb(tmp_path: Path) -> None:
    names, picture = [f"s{i}" for i in range(300)], noise(800, 2048)
    for name in names:
        put(tmp_path, name, picture)
    page = write_summary(tmp_path, names)
    assert page.stat().st_size < 10e6
    shown = pictures(page.read_text())
    assert shown.keys() == {f"overview of {name}" for name in names}
    assert {picture.shape for picture in shown.values()} == {(94, 240, 3)}


def test_a_large_cohort_shows_what_needs_a_look(tmp_path: Path) -> None:
    names, picture = [f"s{i}" for i in range(PICTURES + 1)], noise(60, 60)
    for name in names:
        put(tmp_path, name, picture, **({"mpp_from": "given"} if name == "s7" else {}))
    page = write_summary(tmp_path, names).read_text()
    assert pictures(page).keys() == {"overview of s7"}
    assert f"at most {PICTURES}" in page
    assert "Of 501 slides" in page
    assert len(table(tmp_path)) == PICTURES + 1


def test_tile_writes_it_with_reasons_and_pictures(
    write_tiff: Callable[..., Path], small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dot = np.full((1500, 1500, 3), 240, np.uint8)
    cv2.circle(dot, (700, 600), 90, (120, 90, 150), -1)
    write_tiff(tmp_path / "dot.tiff", dot)
    (tmp_path / "slides.csv").write_text(f"slide_id,path\ngood,{small_slide.path}\nsmall,dot.tiff\n")
    words = ["tile", f"--slides={tmp_path / 'slides.csv'}", f"--out={tmp_path / 'o'}", "--workers=1"]
    assert main(words) == 1
    assert capsys.readouterr().err.endswith(f"of all slides: {tmp_path}/o/summary.html\n")
    rows, page = table(tmp_path / "o"), (tmp_path / "o" / "summary.html").read_text()
    assert (rows["good"]["status"], rows["good"]["tiles"]) == ("done", "16")
    assert rows["small"]["reason"].startswith("no round cell deposit found: the best circle")
    assert rows["small"]["reason"] in page.replace("&#39;", "'")
    assert "dot.tiff" not in page
    shown = pictures(page)
    assert shown.keys() == {"overview of good", "what was found on small"}
    red = (shown["what was found on small"].astype(int) - (200, 30, 30)).__abs__().sum(axis=2) < 60
    y, x = (values.mean() / red.shape[0] for values in np.nonzero(red))
    assert (x, y) == (pytest.approx(700 / 1500, abs=0.02), pytest.approx(600 / 1500, abs=0.02))
    assert 0.1 < np.ptp(np.nonzero(red)[1]) / red.shape[1] < 0.16  # the circle around it is drawn

    assert main([*words[:-1], "--workers=1", "--area=all"]) == 2  # good was tiled otherwise
    write_tiff(tmp_path / "dot.tiff", small_slide.rgb)
    assert main(words) == 0
    assert table(tmp_path / "o")["small"]["status"] == "done"
    assert list((tmp_path / "o" / "failed").iterdir()) == []
