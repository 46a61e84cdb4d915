"""`papsmear crop` from the command line: what the sets hold, against the slides' pixels and the phantoms' truth."""

import csv
import hashlib
import json
import shutil
import tarfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import yaml
from numpy.typing import NDArray

from papsmear.cli import main
from papsmear.tiling.reader import open_slide

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "crop.yaml"
HSIL = {"classification": {"name": "HSIL"}}


def run(slides: Path, shards: Path, out: Path, *options: str) -> int:
    return main(
        ["crop", f"-c={CONFIG}", f"--slides={slides}", f"--shards={shards}", f"--out={out}", "--workers=1", *options]
    )


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def rgb_of(file: Path) -> NDArray[np.uint8]:
    if file.suffix == ".jpg":
        return np.asarray(simplejpeg.decode_jpeg(file.read_bytes()), np.uint8)
    return np.asarray(cv2.imread(str(file)), np.uint8)[..., ::-1]


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.startswith("papsmear crop: error: ")
    assert error.count("\n") == 1
    return error


# --- a phantom cohort ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A phantom cohort, its shards, and the sets made of them."""

    cohort: Path
    shards: Path
    out: Path

    @property
    def slides(self) -> Path:
        return self.cohort / "slides.csv"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("crop")
    made = Made(folder / "cohort", folder / "shards", folder / "sets")
    options = ["--slides=5", "--prevalence=0.4", "--folds=2", "--diameter_mm=0.7", "--abnormal=0.05", "--cell_sets=0"]
    assert main(["phantom", str(made.cohort), *options, "--mpp=0.25", "--workers=1"]) == 0
    assert main(["tile", f"--slides={made.slides}", f"--out={made.shards}", "--workers=1"]) == 0
    assert run(made.slides, made.shards, made.out) == 0
    return made


def truth_of(cohort: Path) -> dict[str, list[tuple[str, NDArray[np.float64]]]]:
    """Of each slide the kinds and outlines of its abnormal cells."""
    return {
        file.stem: [
            (f["properties"]["classification"]["name"], np.array(f["geometry"]["coordinates"][0], float))
            for f in json.loads(file.read_text())["features"]
        ]
        for file in sorted((cohort / "annotations").glob("*.geojson"))
    }


def test_each_annotated_cell_gives_a_crop_and_a_tile_with_it_in_the_middle(made: Made) -> None:
    cells, tiles = rows(made.out / "cells.csv"), rows(made.out / "tiles.csv")
    positive = [row for row in tiles if row["label"] == "1"]
    truth = [(slide_id, *cell) for slide_id, found in truth_of(made.cohort).items() for cell in found]
    size_of = {
        file.parent.name: json.loads(file.read_text())["size_level0"] for file in made.shards.glob("*/slide.json")
    }
    assert len(cells) == len(positive) == len(truth) > 10
    for (slide_id, kind, outline), cell, tile in zip(truth, cells, positive, strict=True):
        assert cell["file"] == f"cells/{kind}/{slide_id}_x{cell['x_level0']}_y{cell['y_level0']}.png"
        assert tile["file"].startswith(f"tiles/positive/{slide_id}_x{tile['x_level0']}_y{tile['y_level0']}")
        low, high = outline.min(axis=0), outline.max(axis=0)
        for row in (cell, tile):
            assert (row["slide_id"], row["class"], row["label"], row["mpp"]) == (slide_id, kind, "1", "0.5")
            corner, side = np.array([int(row["x_level0"]), int(row["y_level0"])]), float(row["size_level0"])
            assert side == 2 * int(row["size_px"])  # the slide has 0.25 µm/px
            middle = np.floor((low + high - side) / 2 + 0.5)
            on_slide = np.clip(middle, 0, np.array(size_of[slide_id]) - side)
            assert (corner == (middle if row is cell else on_slide)).all()
            assert (corner <= low).all()
            assert (corner + side >= high).all()
            assert rgb_of(made.out / row["file"]).shape == (int(row["size_px"]), int(row["size_px"]), 3)
        wanted_um = (high - low).max() * 0.25 + 2 * 2
        assert wanted_um <= int(cell["size_px"]) * 0.5 < wanted_um + 0.5
        assert tile["size_px"] == "320"


def test_pixels_are_those_of_the_slide(made: Made) -> None:
    path = {row["slide_id"]: made.cohort / row["path"] for row in rows(made.slides)}
    for row in rows(made.out / "cells.csv")[::5]:
        corner, size_px = (int(row["x_level0"]), int(row["y_level0"])), int(row["size_px"])
        with open_slide(path[row["slide_id"]]) as reader:
            want, level0 = reader.read(corner, size_px, 0.5), reader.read(corner, 2 * size_px, 0.25)
        got = rgb_of(made.out / row["file"])
        assert (got == want).all()
        mean = level0.reshape(size_px, 2, size_px, 2, 3).mean(axis=(1, 3))
        assert np.abs(got - mean).mean() < 1
    for row in [row for row in rows(made.out / "tiles.csv") if row["label"] == "1"][::5]:
        with open_slide(path[row["slide_id"]]) as reader:
            want = reader.read((int(row["x_level0"]), int(row["y_level0"])), 320, 0.5)
        assert np.abs(rgb_of(made.out / row["file"]) - want.astype(float)).mean() < 3  # what JPEG takes away


def test_positive_and_negative_tiles_are_compressed_alike(made: Made) -> None:
    def tables(file: Path) -> tuple[bytes, ...]:
        data = file.read_bytes()
        frame = data.index(b"\xff\xc0")
        return (*sorted(part[:67] for part in data.split(b"\xff\xdb")[1:3]), data[frame : frame + 19])

    files = [made.out / row["file"] for row in rows(made.out / "tiles.csv")]
    assert len({tables(file) for file in files}) == 1


def test_negative_tiles_are_the_bytes_of_negative_slides_fold_by_fold(made: Made) -> None:
    slide = {row["slide_id"]: row for row in rows(made.slides)}
    tiles = rows(made.out / "tiles.csv")
    for row in tiles:
        assert row["label"] == slide[row["slide_id"]]["label"] == str(int("positive" in row["file"]))
        assert row["fold"] == slide[row["slide_id"]]["fold"]
    count = Counter((row["fold"], row["label"]) for row in tiles)
    used = defaultdict(list)
    for row in tiles:
        if row["label"] == "0":
            used[row["fold"]].append(row["slide_id"])
    available: Counter[str] = Counter()
    for slide_id, row in slide.items():
        with tarfile.open(made.shards / slide_id / f"{slide_id}-000000.tar") as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        if row["label"] == "0":
            available[row["fold"]] += len(members) // 2
        for tile in [t for t in tiles if t["slide_id"] == slide_id and t["label"] == "0"]:
            name = Path(tile["file"]).name
            assert (made.out / tile["file"]).read_bytes() == members[name]
            meta = json.loads(members[name.replace(".jpg", ".json")])
            for column in ("x_level0", "y_level0", "size_level0", "mpp"):
                assert float(tile[column]) == meta[column]
    for fold in ("0", "1"):
        assert count[fold, "0"] == min(count[fold, "1"], available[fold])
        assert set(Counter(used[fold])) == {s for s, row in slide.items() if (row["label"], row["fold"]) == ("0", fold)}
    assert len({row["file"] for row in tiles}) == len(tiles)


def test_the_folder_says_what_it_is_and_nothing_of_where_it_comes_from(made: Made) -> None:
    summary = json.loads((made.out / "crop.json").read_text())
    cells, tiles = rows(made.out / "cells.csv"), rows(made.out / "tiles.csv")
    assert summary["counts"]["cells"] == Counter(row["class"] for row in cells)
    for fold, of in summary["counts"]["folds"].items():
        for side, label in (("positive", "1"), ("negative", "0")):
            assert of[side] == sum((row["fold"], row["label"]) == (fold, label) for row in tiles)
    assert (summary["counts"]["problems"], summary["problems"], summary["failed"]) == ({}, [], [])
    assert summary["settings"]["classes"] == yaml.safe_load(CONFIG.read_text())["classes"]
    files = {str(file.relative_to(made.out)) for file in made.out.rglob("*") if file.is_file()}
    assert files == {row["file"] for row in (*cells, *tiles)} | {"cells.csv", "tiles.csv", "crop.json"}
    everything = b"".join(file.read_bytes() for file in made.out.rglob("*") if file.is_file()).lower()
    for secret in (str(made.cohort).encode(), b"patient", b"scanner", b"exif", b"text", b".svs"):
        assert secret not in everything


def test_the_same_whatever_the_workers_and_other_tiles_for_another_seed(made: Made, tmp_path: Path) -> None:
    assert run(made.slides, made.shards, tmp_path / "two", "--workers=2") == 0
    assert contents(tmp_path / "two") == contents(made.out)
    assert run(made.slides, made.shards, tmp_path / "seed", "--seed=1", "--size_px=320") == 0
    first, other = contents(made.out), contents(tmp_path / "seed")
    for kind, same in (("cells/", True), ("tiles/positive", True), ("tiles/negative", False)):
        assert ({f for f in first if f.startswith(kind)} == {f for f in other if f.startswith(kind)}) == same
    assert {h for f, h in first.items() if "positive" in f} == {h for f, h in other.items() if "positive" in f}


def test_done_is_done_and_other_settings_or_inputs_are_refused(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, out = tmp_path / "cohort", tmp_path / "sets"
    shutil.copytree(made.cohort, cohort)
    shutil.copytree(made.out, out)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert run(cohort / "slides.csv", made.shards, out) == 0
    assert "done before" in capsys.readouterr().err
    assert run(cohort / "slides.csv", made.shards, out, "--margin_um=5", "--classes.NILM=ignore") == 2
    error = only_error(capsys)
    assert "margin_um 2.0 instead of 5.0" in error
    assert "delete it or name another folder" in error
    annotations = next(file for file in (cohort / "annotations").iterdir() if "HSIL" not in file.read_text())
    annotations.write_text(annotations.read_text() + " ")
    assert run(cohort / "slides.csv", made.shards, out) == 2
    assert "made with other annotations;" in only_error(capsys)
    text = (cohort / "slides.csv").read_text()
    (cohort / "slides.csv").write_text(text.replace(",0,site", ",7,site"))
    assert run(cohort / "slides.csv", made.shards, out) == 2
    assert "other slides, other annotations" in only_error(capsys)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    (out / "crop.json").unlink()
    assert run(made.slides, made.shards, out) == 2
    assert "not a folder of papsmear crop" in only_error(capsys)


# --- one slide, any annotations -----------------------------------------------------------------------------------


def shape(kind: str, coordinates: Any, name: str = "HSIL") -> dict[str, Any]:
    return {"geometry": {"type": kind, "coordinates": coordinates}, "properties": {"classification": {"name": name}}}


def box(left: float, top: float, width: float, height: float, name: str = "HSIL") -> dict[str, Any]:
    right, bottom = left + width, top + height
    return shape("Polygon", [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]], name)


def test_classes(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["HSIL: p16", "ascus", "NILM", "Region*", "im_Koilocytotic", "Wart"]
    bench.annotate(*(box(500 + 100 * n, 900, 40, 40, name) for n, name in enumerate(names)))
    assert bench.run("--classes.ASCUS=positive", "--classes.Wart=negative") == 0
    assert [(Path(row["file"]).parent.name, row["class"], row["label"]) for row in bench.cells()] == [
        ("HSIL", "HSIL", "1"), ("ASCUS", "ASCUS", "1"), ("NILM", "NILM", "0"),
        ("im_Koilocytotic", "im_Koilocytotic", "1"), ("Wart", "Wart", "0"),
    ]  # fmt: skip
    assert [row["class"] for row in bench.tiles()] == ["HSIL", "ASCUS", "im_Koilocytotic"]
    assert {row["class"] for row in bench.tiles("0")} == {"negative"}
    assert "0 annotations skipped, 1 ignored by class" in capsys.readouterr().err


BAD = {
    "f1": (box(9000, 900, 40, 40), "outside the slide", "which has 2400 x 2000 px"),
    "f2": (shape("Polygon", [[[0, 0], [50, 50], [50, 0], [0, 50], [0, 0]]]), "broken polygon", "crosses itself"),
    "f3": (box(900, 900, 40, 40, "Wart"), "unknown class", "Wart"),
    "f4": ({"geometry": None, "properties": {}}, "no class", ""),
    "f5": (shape("LineString", [[0, 0], [50, 50]]), "unsupported shape", "LineString"),
    "f6": (box(900, 900, 40, 321), "larger than a tile", "which has 160 µm"),
    "f7": (box(1000, 1000, 40, 40), "", ""),
    "f8": (box(1000, 1000, 40, 40, "LSIL"), "drawn twice", "also by f7"),
    "f9": (box(900, 900, 40, 40, "Wart"), "unknown class", "Wart"),
}


def test_problems_are_named_counted_and_skipped(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.annotate(*(feature for feature, _, _ in BAD.values()))
    assert bench.run() == 0
    lines = capsys.readouterr().err.splitlines()
    for feature, (_, kind, detail) in BAD.items():
        named = [line for line in lines[:-1] if f"feature {feature}" in line or f", {feature}:" in line]
        assert bool(named) == bool(kind)
        assert all(line.startswith(f"{bench.folder}/s1.geojson: ") and detail in line for line in named)
        assert all(kind in line for line in named)
    assert len(lines) == 8
    assert f"{bench.folder}/s1.geojson: feature f3, f9: unknown class (Wart); skipped" in lines
    assert "1 cells, 1 positive and 1 negative tiles; 8 annotations skipped" in lines[-1]
    assert "2 unknown class" in lines[-1]
    summary = json.loads((bench.out / "crop.json").read_text())
    want = {feature: kind for feature, (_, kind, _) in BAD.items() if kind}
    assert {p["feature"]: p["problem"] for p in summary["problems"]} == want
    assert summary["counts"]["problems"] == Counter(want.values())
    assert "Wart" not in (bench.out / "crop.json").read_text()  # what a person typed stays where it is


def test_problems_are_refused_all_at_once(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.annotate(*(feature for feature, _, _ in BAD.values()))
    assert bench.run("--on_problem=refuse") == 2
    error = only_error(capsys)
    for feature, (_, kind, detail) in BAD.items():
        assert (feature in error.replace("also by f7", "")) == bool(kind)
        assert kind in error
        assert detail in error
    assert not bench.out.exists()
    assert not list(bench.folder.glob(".*"))
    bench.annotate(BAD["f7"][0])
    assert bench.run("--on_problem=refuse") == 0


def test_many_features_with_one_problem_are_one_line(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.annotate(box(1000, 1000, 40, 40), *(box(900, 900, 40, 40, "Wart") for _ in range(300)))
    assert bench.run() == 0
    line, last = capsys.readouterr().err.splitlines()
    assert "f2, f3, " in line
    assert "f21 and 280 more: unknown class (Wart)" in line
    assert "300 annotations skipped" in last
    assert len(json.loads((bench.out / "crop.json").read_text())["problems"]) == 300


def test_files_that_are_missing_or_broken(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.annotate(box(1000, 1000, 40, 40))
    (bench.folder / "broken.geojson").write_text("{")
    more = [f"s2,{bench.slide.path},1,0,missing.geojson", f"s3,{bench.slide.path},1,0,broken.geojson"]
    bench.name(*bench.slides.read_text().splitlines()[1:], *more, "s4,no_slide.svs,1,0,")
    assert bench.run("--on_problem=refuse") == 2
    assert "missing.geojson: unreadable annotation file (No such file or directory)" in only_error(capsys)
    assert bench.run() == 0
    error = capsys.readouterr().err
    assert f"{bench.folder}/broken.geojson: unreadable annotation file (" in error
    assert "2 annotations skipped (2 unreadable annotation file)" in error
    assert len(bench.cells()) == 1


def test_a_positive_cell_on_a_negative_slide(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.annotate(box(1000, 1000, 40, 40), box(1100, 1000, 40, 40, "NILM"), label="0")
    assert bench.run() == 0
    assert "feature f1: positive cell on a negative slide (label 0 in slides.csv)" in capsys.readouterr().err
    assert [row["class"] for row in bench.cells()] == ["NILM"]
    assert rows(bench.out / "tiles.csv") == []
    assert (bench.out / "tiles.csv").read_text().startswith("file,slide_id,fold,class,label,")


# --- wrong usage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        (["--size_px=3"], ["3 px"]),
        (["--tile_mpp=0"], ["0 µm/px"]),
        (["--quality=0"], ["quality 0"]),
        (["--margin_um=-1"], ["--margin_um=-1"]),
        (["--point_um=0"], ["--point_um=0"]),
        (["--point_um=161"], ["--point_um=161", "160 µm"]),
        (["--mpp=25"], ["--mpp=25"]),
        (["--workers=0"], ["--workers=0"]),
        (["--classes.hsil=negative"], ["HSIL", "another spelling"]),
        (["--classes={NILM: negative}"], ["none of them is positive"]),
        (["--classes={HSIL: abnormal}"], ["abnormal"]),
        (["--on_problem=ask"], ["ask"]),
        (["--shards=nowhere"], ["nowhere: no tiled slides"]),
    ],
)
def test_what_cannot_be_run_as_asked(
    bench: Any, capsys: pytest.CaptureFixture[str], options: list[str], reasons: list[str]
) -> None:
    bench.annotate(box(1000, 1000, 40, 40))
    assert bench.run(*options) == 2
    error = only_error(capsys)
    assert all(reason in error for reason in reasons), error
    assert not bench.out.exists()


def test_nothing_annotated(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.name(f"s1,{bench.slide.path},1,0,")
    assert bench.run() == 2
    assert "no slide has annotations" in only_error(capsys)
    bench.annotate()
    assert bench.run() == 2
    assert "no annotated cell to crop" in only_error(capsys)
    assert not bench.out.exists()


def test_out_must_be_a_new_or_empty_folder(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.annotate(box(1000, 1000, 40, 40))
    bench.out.mkdir()
    assert bench.run() == 0
    assert run(bench.slides, bench.shards, bench.slides) == 2
    assert "slides.csv: not a folder of papsmear crop" in capsys.readouterr().err
    assert run(bench.slides, bench.shards, bench.shards) == 2
    assert (bench.shards / "n1" / "slide.json").is_file()


@pytest.mark.parametrize("small_disk", ["300k"], indirect=True)
def test_a_full_disk(bench: Any, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.annotate(*(box(100 + 21 * i, 900, 20, 20) for i in range(60)))
    assert run(bench.slides, bench.shards, small_disk / "o") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{small_disk}/o: No space left on device; free some space" in error
    assert not list(small_disk.iterdir())
