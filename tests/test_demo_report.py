"""The demo's report shows what the stages left, checks it against the truth, and names what is missing."""

import csv
import dataclasses
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from papsmear.cohort import write_rows
from papsmear.errors import InputError
from papsmear.mil.curves import read_metrics
from papsmear.mil.demo import gather, main
from papsmear.mil.diagnosis import Diagnosis
from papsmear.mil.metrics import figures
from papsmear.mil.qupath import TopTile, feature_collection
from papsmear.mil.scope import Measured
from papsmear.mil.truth import hold_a_cell, read_cells
from papsmear.page import RESEARCH_USE_ONLY
from papsmear.probes.classes import HERLEV
from papsmear.probes.datasets import CellSet
from papsmear.probes.protocol import Score
from papsmear.probes.report import Results, results_json
from papsmear.probes.scores import Spread
from papsmear.ssl.card import EncoderCard
from papsmear.tiling.cut import TileSettings
from papsmear.tiling.shards import ShardWriter, Tile

SLIDES = {"slide_1": 0, "slide_2": 1, "slide_3": 1}
CORNERS = [(x, y) for y in (0, 64, 128) for x in (0, 64, 128, 192)]
HERE, ELSEWHERE = (64, 128), (192, 0)  # the tile with the abnormal cell, and one without
CARD = EncoderCard("encoder.safetensors", "resnet10t", 64, (0.5,) * 3, (0.2,) * 3, 0.5, ("slide_3",), 0, "ab" * 32)


def _jpeg(side: int, level: int) -> bytes:
    return simplejpeg.encode_jpeg(np.full((side, side, 3), level, np.uint8))


def _write_shards(folder: Path, slide_id: str) -> None:
    folder.mkdir(parents=True)
    with ShardWriter(folder, slide_id) as writer:
        for n, corner in enumerate(CORNERS):
            writer.write(Tile(corner, 64.0, 32, 0.5, 0.0, 1.0, 1.0, _jpeg(32, 10 * n)))
    counts = {"grid": 16, "tiles": len(CORNERS), "shards": 1}
    content = {"slide_id": slide_id, "settings": {"size_px": 32, "mpp": 0.5}, "counts": counts}
    (folder / "slide.json").write_text(json.dumps(content))
    (folder / "overview.jpg").write_bytes(_jpeg(100, 200))


def _write_metrics(run: Path, version: int, losses: dict[int, float]) -> None:
    folder = run / "logs" / f"version_{version}"
    folder.mkdir(parents=True)
    rows = [{"epoch": "0", "step": str(step), "train/loss": str(loss), "lr": ""} for step, loss in losses.items()]
    write_rows(folder / "metrics.csv", rows)


def _probe_results() -> str:
    cells = CellSet("herlev", HERLEV[:2], ("a", "b", "c", "d"), (), np.array([0, 0, 1, 1]), {})
    other = dataclasses.replace(CARD, name="random:resnet10t", sha256="cd" * 32)

    def score(f1: float) -> Score:
        spread = Spread((f1, f1))
        return Score(3, spread, {"CIS": spread, "LD": spread}, {}, {3: spread}, np.eye(2, dtype=np.int64))

    scores = {"herlev": {"random": score(0.9), "DINO": score(0.7)}}
    return results_json(Results({"herlev": cells}, {"random": other, "DINO": CARD}, scores, {}, 2, 0, {}, {}))


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """What the demo leaves when all stages are done: three slides of twelve tiles, and one diagnosis."""
    cohort = tmp_path / "cohort"
    rows = [{"slide_id": s, "path": f"slides/{s}.svs", "label": str(label), "fold": "0"} for s, label in SLIDES.items()]
    write_rows(cohort / "slides.csv", rows)
    (cohort / "annotations").mkdir()
    cell = feature_collection([TopTile(1, (HERE[0] + 10, HERE[1] + 20), 20, 1.0, 0.0)], (256, 192))
    (cohort / "annotations" / "slide_2.geojson").write_text(json.dumps(cell))
    for slide_id in SLIDES:
        _write_shards(tmp_path / "shards" / slide_id, slide_id)
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "encoder.json").write_text(CARD.to_json())
    _write_metrics(tmp_path / "ssl", 0, {0: 7.0, 1: 6.5})
    _write_metrics(tmp_path / "mil", 0, {0: 0.7, 1: 0.6})
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "results.json").write_text(_probe_results())
    found = figures(np.array([0, 1, 1]), np.array([0.2, 0.9, 0.4]), 0.5)
    test = {"fold": 0, "leak": False, "slides": 3, **dataclasses.asdict(found)}
    test |= {"sensitivity": found.sensitivity, "specificity": found.specificity}
    (tmp_path / "mil" / "test.json").write_text(json.dumps(test))
    scores = np.arange(len(CORNERS), dtype=np.float32)
    scores[CORNERS.index(HERE)] = 99
    scores[CORNERS.index(ELSEWHERE)] = 98
    tiles = TileSettings(size_px=32)
    measured = Measured(len(CORNERS))
    diagnosis = Diagnosis(
        "slide_2", 0.5, (256, 192), 0.25, tiles, 64.0, {}, 0.8, np.array(CORNERS, np.int32), scores, measured=measured
    )
    (tmp_path / "diagnosis").mkdir()
    (tmp_path / "diagnosis" / "slide_2.json").write_text(json.dumps(diagnosis.record()))
    (tmp_path / "diagnosis" / "slide_2-heatmap.jpg").write_bytes(_jpeg(120, 150))
    (tmp_path / "timings.csv").write_text("stage,seconds\ntile,12\npretrain,100\n")
    return tmp_path


class _Words(HTMLParser):
    """The words of a page, and what it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.said: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.said).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        if tag == "a":
            self.links.append(of["href"] or "")
        if tag == "img":
            self.pictures.append(of["src"] or "")

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_page_says_what_the_stages_left(demo: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(demo)]) == 0
    page = _Words((demo / "report.html").read_text(encoding="utf-8"))
    for words in (
        RESEARCH_USE_ONLY,
        "clinically they mean nothing",
        "3 phantom slides, 2 with abnormal cells",
        "36 tiles of 32 px at 0.5 µm/px",
        "AUC 1.000",
        "50.0 % (1 of 2)",  # sensitivity: of 0.9 and 0.4 only the first is above 0.5
        # The demo's own encoder, though the random one has 90 here.
        "70.0 % weighted F1 of that encoder by k-NN, on single cells of the Herlev",
        "suspicious – review",
        "1 of the 10 tiles of highest attention hold an abnormal cell",
        "as many drawn at random would hold 0.8",  # 10 of 12 tiles, 1 of which holds the cell
        "all 112",
    ):
        assert words in page.text
    assert all(picture.startswith("data:") for picture in page.pictures)
    assert not any(link.startswith(("/", "http", "file")) for link in page.links)
    assert {"probe/report.html", "diagnosis/slide_2.html", "diagnosis/slide_2.geojson"} <= set(page.links)
    told = capsys.readouterr().out
    assert "36 tiles" in told
    assert "report.html" in told


def test_top_tiles_are_marked_by_the_truth(demo: Path) -> None:
    diagnosis = gather(demo)["diagnosis"]
    assert [tuple(tile["xy_level0"]) for tile in diagnosis["tiles"][:2]] == [HERE, ELSEWHERE]
    assert [tile["abnormal"] for tile in diagnosis["tiles"]] == [True, False, False, False, False]
    assert (diagnosis["hits"], diagnosis["n_abnormal"]) == (1, 1)


@pytest.mark.parametrize(
    ("missing", "stage"),
    [
        ("cohort/slides.csv", "papsmear phantom"),
        ("cohort/annotations/slide_2.geojson", "slide_2.geojson"),
        ("shards", "papsmear tile"),
        ("shards/slide_1/overview.jpg", "papsmear tile"),
        ("features/encoder.json", "papsmear embed"),
        ("ssl", "configs/ssl/tiny.yaml"),
        ("ssl/logs", "lightning fit"),
        ("mil/test.json", "lightning test"),
        ("probe/results.json", "papsmear probe"),
        ("diagnosis/slide_2.json", "papsmear diagnose"),
        ("diagnosis/slide_2-heatmap.jpg", "papsmear diagnose"),
    ],
)
def test_what_is_missing_is_named_with_its_stage(
    demo: Path, missing: str, stage: str, capsys: pytest.CaptureFixture
) -> None:
    path = demo / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main([str(demo)]) == 1
    told = capsys.readouterr().err
    assert stage in told
    assert str(path if missing != "diagnosis/slide_2.json" else path.parent) in told
    assert told.count("\n") == 1
    assert not (demo / "report.html").exists()


def test_a_slide_that_cannot_be_judged_is_listed_without_a_figure(demo: Path) -> None:
    """And it is not the one that is shown."""
    file = demo / "diagnosis" / "slide_2.json"
    record = json.loads(file.read_text())
    (demo / "diagnosis" / "slide_3.json").write_text(json.dumps(record | {"slide_id": "slide_3"}))
    (demo / "diagnosis" / "slide_3-heatmap.jpg").write_bytes(_jpeg(120, 150))
    shutil.copy(
        demo / "cohort" / "annotations" / "slide_2.geojson", demo / "cohort" / "annotations" / "slide_3.geojson"
    )
    file.write_text(json.dumps(record | {"probability": None, "decision": "not assessable", "top_tiles": []}))
    assert main([str(demo)]) == 0
    page = _Words((demo / "report.html").read_text(encoding="utf-8"))
    assert "slide_2 abnormal cells – not assessable" in page.text
    assert "Slide slide_3 , which holds 1 abnormal cells" in page.text


def test_damaged_json_is_named(demo: Path, capsys: pytest.CaptureFixture) -> None:
    (demo / "mil" / "test.json").write_text('{"auc":')
    assert main([str(demo)]) == 1
    assert "mil/test.json: damaged" in capsys.readouterr().err


def test_times_are_left_out_where_nobody_took_them(demo: Path) -> None:
    (demo / "timings.csv").unlink()
    assert main([str(demo)]) == 0
    assert "seconds" not in _Words((demo / "report.html").read_text(encoding="utf-8")).text


def test_a_run_taken_up_again_has_one_curve(tmp_path: Path) -> None:
    _write_metrics(tmp_path, 0, {0: 5.0, 1: 4.0, 2: 9.0})
    _write_metrics(tmp_path, 10, {2: 3.0, 3: 2.0})
    _write_metrics(tmp_path, 2, {2: 8.0})
    assert read_metrics(tmp_path)["train/loss"] == {0: 5.0, 1: 4.0, 2: 3.0, 3: 2.0}
    with (tmp_path / "logs" / "version_0" / "metrics.csv").open() as stream:
        assert next(csv.reader(stream)) == ["epoch", "step", "train/loss", "lr"]


points = st.tuples(st.integers(0, 50), st.integers(0, 50))


@given(st.lists(points, min_size=1, max_size=6), st.lists(points, max_size=6), st.integers(1, 20))
def test_a_tile_holds_a_cell_whose_middle_lies_in_it(corners: list, cells: list, side: int) -> None:
    expected = [any(x <= cx < x + side and y <= cy < y + side for cx, cy in cells) for x, y in corners]
    assert hold_a_cell(corners, side, np.array(cells, float).reshape(-1, 2)).tolist() == expected


def test_annotations_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text('{"features": [{"geometry": null}]}')
    with pytest.raises(InputError, match=r"a\.geojson: not polygons"):
        read_cells(tmp_path / "a.geojson")
