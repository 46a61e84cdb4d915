"""`papsmear crop` from the command line: what the sets hold, against the slides' pixels and the phantoms' truth."""

import csv
import hashlib
import io
import json
import shutil
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
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
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
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


@dataclass(frozen=True)
class Bench:
    """A slide s1 of 2400 x 2000 px at 0.5 µm/px to be annotated, and shards of a negative slide n1."""

    folder: Path
    slide: Any

    @property
    def slides(self) -> Path:
        return self.folder / "slides.csv"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def annotate(self, *features: dict[str, Any], label: str = "1") -> None:
        numbered = [{"type": "Feature", "id": f"f{n}", **f} for n, f in enumerate(features, 1)]
        (self.folder / "s1.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": numbered}))
        self.name(f"s1,{self.slide.path},{label},0,s1.geojson", "n1,gone.svs,0,0,")

    def name(self, *lines: str) -> None:
        self.slides.write_text("\n".join(["slide_id,path,label,fold,annotations", *lines]) + "\n")

    def run(self, *options: str) -> int:
        return run(self.slides, self.shards, self.out, *options)

    def cells(self) -> list[dict[str, str]]:
        return rows(self.out / "cells.csv")

    def tiles(self, label: str = "1") -> list[dict[str, str]]:
        return [row for row in rows(self.out / "tiles.csv") if row["label"] == label]


def write_shards(shards: Path, slide_id: str, n_tiles: int, **settings: Any) -> None:
    """Shards of grey tiles, no two alike, as papsmear tile lays them out."""
    folder = shards / slide_id
    folder.mkdir(parents=True)
    for first in range(0, n_tiles, 1024):
        with tarfile.open(folder / f"{slide_id}-{first // 1024:06d}.tar", "w") as tar:
            for number in range(first, min(first + 1024, n_tiles)):
                meta = {"slide_id": slide_id, "x_level0": 320 * number, "y_level0": 0, "size_level0": 320.0}
                meta |= {"size_px": 320, "mpp": 0.5, "z": 0.0, "focus": 1.0, "crc32": zlib.crc32(b"%d" % number)}
                key = f"{slide_id}_x{320 * number}_y0"
                for name, data in ((f"{key}.jpg", b"%d" % number), (f"{key}.json", json.dumps(meta).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    counts = {"tiles": n_tiles, "shards": -(-n_tiles // 1024)}
    settings = {"size_px": 320, "mpp": 0.5, "quality": 90, **settings}
    (folder / "slide.json").write_text(json.dumps({"slide_id": slide_id, "settings": settings, "counts": counts}))


@pytest.fixture
def bench(small_slide: Any, tmp_path: Path) -> Bench:
    bench = Bench(tmp_path, small_slide)
    write_shards(bench.shards, "n1", 40)
    return bench


def shape(kind: str, coordinates: Any, name: str = "HSIL") -> dict[str, Any]:
    return {"geometry": {"type": kind, "coordinates": coordinates}, "properties": {"classification": {"name": name}}}


def box(left: float, top: float, width: float, height: float, name: str = "HSIL") -> dict[str, Any]:
    right, bottom = left + width, top + height
    return shape("Polygon", [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]], name)


def test_points_boxes_and_outlines_become_squares(bench: Bench) -> None:
    bench.annotate(
        box(1000, 900, 40, 90),
        shape("MultiPoint", [[1200, 1000], [1301.5, 1000]]),
        shape("Polygon", [[[800, 800], [860, 810], [830, 850]]]),
    )
    assert bench.run("--margin_um=4", "--point_um=20") == 0
    found = [tuple(int(row[key]) for key in ("x_level0", "y_level0", "size_px")) for row in bench.cells()]
    assert found == [
        (967, 892, 106),  # 90 px and 4 µm, 8 px, on both sides of it
        (1172, 972, 56),
        (1274, 972, 56),  # halves up
        (792, 787, 76),
    ]
    rgb = bench.slide.rgb
    for row, (x, y, side) in zip(bench.cells(), found, strict=True):
        assert (rgb_of(bench.out / row["file"]) == rgb[y : y + side, x : x + side]).all()
    tiles = [(int(row["x_level0"]), int(row["y_level0"])) for row in bench.tiles()]
    assert tiles == [(860, 785), (1040, 840), (1142, 840), (670, 665)]
    assert len(bench.tiles("0")) == 4


def test_cells_at_the_edge(bench: Bench) -> None:
    bench.annotate(
        box(-20, 500, 60, 60),
        box(2380, 1960, 60, 60),
        box(-31, 500, 60, 60),
        box(2375, 100, 50, 50),
        box(9000, 1, 9, 9),
    )
    assert bench.run() == 0
    assert [(row["x_level0"], row["y_level0"]) for row in bench.cells()] == [("-24", "496")]
    crop = rgb_of(bench.out / bench.cells()[0]["file"])
    assert (crop[:, 24:] == bench.slide.rgb[496:564, :44]).all()
    beyond = crop[:, :24].reshape(-1, 3)
    assert (beyond == beyond[0]).all()
    assert beyond[0].min() > 200
    assert [(row["x_level0"], row["y_level0"]) for row in bench.tiles()] == [("0", "370")]
    problems = json.loads((bench.out / "crop.json").read_text())["problems"]
    assert [(p["feature"], p["problem"]) for p in problems] == [(f"f{n}", "outside the slide") for n in (2, 3, 4, 5)]


def test_tiles_are_moved_onto_the_slide_and_kept_apart(bench: Bench) -> None:
    bench.annotate(box(2340, 1940, 50, 50), box(2300, 1900, 60, 60), box(10, 30, 20, 20))
    assert bench.run() == 0
    assert [row["file"] for row in bench.tiles()] == [
        "tiles/positive/s1_x2080_y1680.jpg", "tiles/positive/s1_x2080_y1680_2.jpg", "tiles/positive/s1_x0_y0.jpg",
    ]  # fmt: skip
    for row in bench.tiles():
        assert (bench.out / row["file"]).is_file()
    assert len({row["file"] for row in bench.cells()}) == 3


def test_a_slide_smaller_than_a_tile(bench: Bench, write_tiff: Callable[..., Path], tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "tiny.tiff", bench.slide.rgb[800:1000, 1000:1500])
    bench.annotate(box(400, 100, 50, 50))
    bench.name(f"s1,{path},1,0,s1.geojson", "n1,gone.svs,0,0,")
    assert bench.run() == 0
    (tile,) = bench.tiles()
    assert (tile["x_level0"], tile["y_level0"]) == ("180", "0")
    rgb = rgb_of(bench.out / tile["file"]).astype(float)
    assert np.abs(rgb[:200] - bench.slide.rgb[800:1000, 1180:1500]).mean() < 5
    assert rgb[208:].min() > 200


def test_classes(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_configuration_names_every_class_of_the_phantoms_and_public_sets() -> None:
    from papsmear.tiling.annotations import class_of
    from papsmear.tiling.phantom.cellkinds import CELL_KINDS

    classes = yaml.safe_load(CONFIG.read_text())["classes"]
    negative = {"superficiel", "intermediate", "columnar", "parabasal", "im_superficial-intermediate"}
    for kind in CELL_KINDS:
        side = classes[class_of((kind,), classes)]
        is_negative = any(kind.lower().endswith(name) for name in negative)
        assert side == ("ignore" if "Metaplastic" in kind else "negative" if is_negative else "positive"), kind


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


def test_problems_are_named_counted_and_skipped(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_problems_are_refused_all_at_once(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_many_features_with_one_problem_are_one_line(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.annotate(box(1000, 1000, 40, 40), *(box(900, 900, 40, 40, "Wart") for _ in range(300)))
    assert bench.run() == 0
    line, last = capsys.readouterr().err.splitlines()
    assert "f2, f3, " in line
    assert "f21 and 280 more: unknown class (Wart)" in line
    assert "300 annotations skipped" in last
    assert len(json.loads((bench.out / "crop.json").read_text())["problems"]) == 300


def test_files_that_are_missing_or_broken(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_positive_cell_on_a_negative_slide(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.annotate(box(1000, 1000, 40, 40), box(1100, 1000, 40, 40, "NILM"), label="0")
    assert bench.run() == 0
    assert "feature f1: positive cell on a negative slide (label 0 in slides.csv)" in capsys.readouterr().err
    assert [row["class"] for row in bench.cells()] == ["NILM"]
    assert rows(bench.out / "tiles.csv") == []
    assert (bench.out / "tiles.csv").read_text().startswith("file,slide_id,fold,class,label,")


def test_a_slide_that_cannot_be_read_is_named_and_tried_again(
    bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bench.annotate(box(1000, 1000, 40, 40))
    late = tmp_path / "late.tiff"
    bench.name(*bench.slides.read_text().splitlines()[1:], f"s2,{late},1,0,s1.geojson")
    assert bench.run() == 1
    error = capsys.readouterr().err
    assert f"slide s2 failed: {late}: cannot read the slide: No such file" in error
    assert "1 slides failed" in error
    assert [row["slide_id"] for row in bench.cells()] == ["s1"]
    assert json.loads((bench.out / "crop.json").read_text())["failed"] == ["s2"]
    shutil.copy(bench.slide.path, late)
    assert bench.run() == 0
    assert [row["slide_id"] for row in bench.cells()] == ["s1", "s2"]
    assert bench.run() == 0
    assert "done before" in capsys.readouterr().err.splitlines()[-1]


def test_a_slide_damaged_where_the_cells_lie_leaves_no_picture(
    bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import tifffile

    bench.annotate(box(10, 10, 40, 40), box(1000, 1500, 40, 40))
    path = tmp_path / "damaged.tiff"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(bench.slide.rgb, tile=(256, 256), photometric="rgb", compression="jpeg", resolution=(2e4, 2e4),
                   resolutionunit="CENTIMETER")  # fmt: skip
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        at, n = page.dataoffsets[5 * 10 + 4], page.databytecounts[5 * 10 + 4]
    data = bytearray(path.read_bytes())
    data[at : at + n] = bytes(n)
    path.write_bytes(data)
    bench.name(f"s1,{path},1,0,s1.geojson", f"s2,{bench.slide.path},1,0,s1.geojson", "n1,gone.svs,0,0,")
    assert bench.run() == 1
    assert "slide s1 failed: " in capsys.readouterr().err
    assert {file.name.partition("_")[0] for file in (bench.out / "cells" / "HSIL").iterdir()} == {"s2"}
    assert len(list((bench.out / "tiles" / "positive").iterdir())) == len(bench.tiles()) == 2


def test_the_mpp_of_a_slide_without_one(
    bench: Bench, write_tiff: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_tiff(tmp_path / "bare.tiff", bench.slide.rgb, None)
    bench.annotate(box(1000, 1000, 40, 40))
    bench.name(f"s1,{bare},1,0,s1.geojson", "n1,gone.svs,0,0,")
    assert bench.run() == 1
    assert "column mpp of slides.csv" in capsys.readouterr().err
    assert not bench.out.exists()
    assert bench.run("--mpp=0.25") == 0
    assert [(row["size_px"], row["size_level0"]) for row in bench.cells()] == [("28", "56.0")]
    assert [(row["size_px"], row["size_level0"]) for row in bench.tiles()] == [("320", "640.0")]


def test_a_slide_coarser_than_the_tiles_fails(
    bench: Bench, write_tiff: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse = write_tiff(tmp_path / "coarse.tiff", bench.slide.rgb, 1.0)
    bench.annotate(box(1000, 1000, 40, 40))
    bench.name(f"s1,{coarse},1,0,s1.geojson", "n1,gone.svs,0,0,")
    assert bench.run() == 1
    assert "the slide has 1 µm/px" in capsys.readouterr().err
    assert bench.run("--upsample=true") == 0
    assert [(row["size_px"], row["size_level0"]) for row in bench.cells()] == [("88", "44.0")]
    assert rgb_of(bench.out / bench.tiles()[0]["file"]).shape == (320, 320, 3)


def test_of_several_focal_planes_the_sharpest_where_the_cell_lies(
    bench: Bench, write_tiff: Callable[..., Path], tmp_path: Path
) -> None:
    blurred = cv2.GaussianBlur(bench.slide.rgb, (0, 0), 3)
    left, right = bench.slide.rgb.copy(), bench.slide.rgb.copy()
    left[:, 1200:], right[:, :1200] = blurred[:, 1200:], blurred[:, :1200]
    write_tiff(tmp_path / "s1.tiff", left)
    write_tiff(tmp_path / "s1_z+1.tiff", right)
    bench.annotate(box(900, 900, 40, 40), box(1500, 900, 40, 40))
    bench.slides.write_text(
        "slide_id,path,label,annotations,z_planes\ns1,s1.tiff,1,s1.geojson,s1_z{z:+d}.tiff\nn1,gone.svs,0,,\n"
    )
    assert bench.run() == 0
    for row in (*bench.cells(), *bench.tiles()):
        x, y, side = (int(row[key]) for key in ("x_level0", "y_level0", "size_px"))
        got, at = rgb_of(bench.out / row["file"]).astype(float), (slice(y, y + side), slice(x, x + side))
        assert np.abs(got - bench.slide.rgb[at]).mean() <= (0 if row["file"].endswith(".png") else 3.5)
        assert np.abs(got - blurred[at]).mean() > 1


# --- negative tiles -----------------------------------------------------------------------------------------------


def annotate_many(bench: Bench, n: int, *lines: str) -> None:
    bench.annotate(*(box(100 + 21 * i, 900, 20, 20) for i in range(n)))
    bench.name(f"s1,{bench.slide.path},1,0,s1.geojson", *lines)


def test_negative_tiles_are_spread_over_the_slides_and_shards_of_the_fold(bench: Bench) -> None:
    write_shards(bench.shards, "n2", 1500)
    write_shards(bench.shards, "n3", 3)
    write_shards(bench.shards, "other", 50)
    write_shards(bench.shards, "unknown", 50)
    lines = ["n1,gone.svs,0,0,", "n2,gone.svs,0,0,", "n3,gone.svs,0,0,", "other,gone.svs,0,1,", "unknown,gone.svs,,0,"]
    annotate_many(bench, 83, *lines, "untiled,gone.svs,0,0,")
    assert bench.run() == 0
    negatives = bench.tiles("0")
    assert Counter(row["slide_id"] for row in negatives) == {"n1": 40, "n2": 40, "n3": 3}
    places = [int(row["x_level0"]) // 320 for row in negatives if row["slide_id"] == "n2"]
    assert len(set(places)) == 40
    assert places == sorted(places)
    assert min(places) < 300
    assert max(places) >= 1200
    for row in negatives:
        assert (bench.out / row["file"]).read_bytes() == b"%d" % (int(row["x_level0"]) // 320)


def test_a_fold_that_lacks_negative_tiles_is_filled_as_far_as_it_goes(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.annotate(*(box(100 + 21 * i, 900, 20, 20) for i in range(50)))
    lines = [f"s{fold or 'x'},{bench.slide.path},1,{fold},s1.geojson" for fold in ("0", "1", "")]
    bench.name(*lines, "n1,gone.svs,0,0,")
    assert bench.run() == 0
    error = capsys.readouterr().err
    assert "fold 0: 40 negative tiles for 50 positive ones" in error
    assert "fold 1: 0 negative tiles for 50 positive ones" in error
    assert "fold none: 0 negative tiles for 50 positive ones" in error
    assert Counter(row["fold"] for row in bench.tiles()) == {"0": 50, "1": 50, "": 50}
    assert {row["fold"] for row in bench.tiles("0")} == {"0"}


def test_shards_of_other_tiles_are_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(bench.shards, "n2", 3, size_px=256, quality=80)
    annotate_many(bench, 1, "n1,gone.svs,0,0,", "n2,gone.svs,0,0,")
    assert bench.run() == 2
    error = only_error(capsys)
    assert f"{bench.shards}/n2: tiled with size_px 256 instead of 320, quality 80 instead of 90;" in error
    assert not bench.out.exists()


def damage_end(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[: 512 * 30])


def damage_pair(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes().replace(b"_y0.json", b"_y9.json"))


def damage_meta(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes().replace(b'{"slide_id"', b'["slide_id"'))


def damage_pictures(path: Path) -> None:
    with tarfile.open(path) as tar:
        places = [member.offset_data for member in tar if member.name.endswith(".jpg")]
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, damage_end, damage_pair, damage_meta, damage_pictures])
def test_a_damaged_shard_is_named(
    bench: Bench, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    write_shards(bench.shards, "n2", 1500)
    annotate_many(bench, 30, "n1,gone.svs,0,0,", "n2,gone.svs,0,0,")
    damage(bench.shards / "n2" / "n2-000001.tar")
    assert bench.run() == 1
    error = capsys.readouterr().err
    assert f"slide n2 failed: {bench.shards}/n2/n2-000001.tar: " in error
    assert "run papsmear tile again" in error
    assert {row["slide_id"] for row in bench.tiles("0")} == {"n1"}
    assert len(list((bench.out / "tiles" / "negative").iterdir())) == len(bench.tiles("0")) == 15


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
    bench: Bench, capsys: pytest.CaptureFixture[str], options: list[str], reasons: list[str]
) -> None:
    bench.annotate(box(1000, 1000, 40, 40))
    assert bench.run(*options) == 2
    error = only_error(capsys)
    assert all(reason in error for reason in reasons), error
    assert not bench.out.exists()


def test_nothing_annotated(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.name(f"s1,{bench.slide.path},1,0,")
    assert bench.run() == 2
    assert "no slide has annotations" in only_error(capsys)
    bench.annotate()
    assert bench.run() == 2
    assert "no annotated cell to crop" in only_error(capsys)
    assert not bench.out.exists()


def test_out_must_be_a_new_or_empty_folder(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.annotate(box(1000, 1000, 40, 40))
    bench.out.mkdir()
    assert bench.run() == 0
    assert run(bench.slides, bench.shards, bench.slides) == 2
    assert "slides.csv: not a folder of papsmear crop" in capsys.readouterr().err
    assert run(bench.slides, bench.shards, bench.shards) == 2
    assert (bench.shards / "n1" / "slide.json").is_file()


@pytest.mark.parametrize("small_disk", ["300k"], indirect=True)
def test_a_full_disk(bench: Bench, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotate_many(bench, 60, "n1,gone.svs,0,0,")
    assert run(bench.slides, bench.shards, small_disk / "o") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{small_disk}/o: No space left on device; free some space" in error
    assert not list(small_disk.iterdir())
