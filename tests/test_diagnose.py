"""From a slide file to its diagnosis: the same scores as over shards and bags, and files a cytologist can use."""

import base64
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st

from papsmear.cli import main
from papsmear.cohort import Slide
from papsmear.errors import UsageError
from papsmear.mil.bags import read_bag, read_card
from papsmear.mil.diagnose import diagnose
from papsmear.mil.diagnoser import load_diagnoser
from papsmear.mil.diagnosis import Diagnosis
from papsmear.mil.embed import embed
from papsmear.mil.heads import build_head
from papsmear.mil.heatmap import draw_heatmap, percentile_ranks
from papsmear.mil.model import NAME, HeadCard, load_head, save_head
from papsmear.mil.qupath import TopTile, feature_collection
from papsmear.page import RESEARCH_USE_ONLY
from papsmear.ssl.encoder import export_encoder, load_encoder
from papsmear.tiling.cut import TileSettings
from papsmear.tiling.phantom.identity import Identity
from papsmear.tiling.phantom.svs import write_svs
from papsmear.tiling.planes import open_planes
from papsmear.tiling.slide import tile_slide

SIDE = 2560  # level-0 pixels: 4 x 4 tiles of 640, of which the 12 inside the round deposit are read
IDENTITY = Identity(patient="MUSTERMANN, Erika", user="scanuser7", date="03/14/25", barcode="BC-998877")


@dataclasses.dataclass(frozen=True)
class Case:
    """A slide, a trained head with its encoder, and the folder that they were diagnosed into."""

    slide: Path
    run: Path
    encoder: Path
    out: Path

    @property
    def record(self) -> dict:
        return json.loads((self.out / "Case_7.json").read_text(encoding="utf-8"))

    @property
    def page(self) -> str:
        return (self.out / "Case_7.html").read_text(encoding="utf-8")


def _draw_slide(path: Path, side: int) -> None:
    """A round deposit of discs that stand for cells."""
    rng = np.random.default_rng(0)
    rgb = np.full((side, side, 3), 244, np.uint8)
    for _ in range(900):
        angle, radius = rng.uniform(0, 2 * np.pi), 0.46 * side * np.sqrt(rng.uniform())
        centre = (int(side / 2 + radius * np.cos(angle)), int(side / 2 + radius * np.sin(angle)))
        colour = ((150, 200, 205), (225, 170, 190), (230, 190, 160))[rng.integers(3)]
        cv2.circle(rgb, centre, int(rng.integers(25, 60)), colour, -1)
        cv2.circle(rgb, centre, int(rng.integers(6, 16)), (70, 50, 110), -1)
    strips: Iterator[np.ndarray] = (rgb[y : y + 256] for y in range(0, side, 256))
    write_svs(path, (side, side), strips, 0.25, IDENTITY)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A diagnosed slide."""
    folder = tmp_path_factory.mktemp("diagnose")
    slide = folder / "Case 7.svs"
    _draw_slide(slide, SIDE)
    network = load_encoder("random:resnet10t", "cpu")
    card = dataclasses.replace(network.card, input_px=64, mpp=0.5, train_slides=("other",), fold=0)
    export_encoder(folder / "encoder.safetensors", network.network, card)
    encoder = load_encoder(str(folder / "encoder.safetensors"), "cpu")
    torch.manual_seed(3)
    head = build_head("gated_attention", encoder.width, {"embedding": 16, "hidden": 8})
    head.std.fill_(0.01)  # random features hardly differ; so small a scale makes the attention uneven
    card = HeadCard(
        head="gated_attention",
        head_args={"embedding": 16, "hidden": 8},
        width=encoder.width,
        threshold=0.4,
        fold=0,
        encoder=encoder.card.name,
        encoder_sha256=encoder.card.sha256,
        tiles=TileSettings(),
        train_slides=("other",),
        validation_slides=("another",),
    )
    save_head(folder / "run" / NAME, head, card)
    assert diagnose([slide], folder / "run", folder / "out") == 0
    return Case(slide, folder / "run", folder / "encoder.safetensors", folder / "out")


def _with_card(case: Case, run: Path, **changes: object) -> Path:
    """The case's head in another run folder, its card changed."""
    trained = load_head(case.run)
    save_head(run / NAME, trained.head, dataclasses.replace(trained.card, **changes))
    return run


def shards_in(folder: Path) -> Path:
    """A folder for shards in `folder`."""
    (folder / "shards").mkdir()
    return folder / "shards"


def test_scores_are_those_of_the_route_over_shards_and_bags(case: Case, tmp_path: Path) -> None:
    slide = Slide("Case_7", case.slide, None, "p", None, "", None, None, {})
    assert tile_slide(slide, shards_in(tmp_path), TileSettings()).status == "tiled"
    assert embed(tmp_path / "shards", str(case.encoder), tmp_path / "features") == 0
    bag = read_bag(tmp_path / "features" / "Case_7.h5")
    probability, scores = load_head(case.run).judge(bag.features)
    with open_planes(case.slide) as planes:
        found = load_diagnoser(case.run).diagnose("Case_7", planes)
    assert len(found.scores) == 12
    assert np.array_equal(found.xy_level0, bag.xy_level0)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
    assert found.probability == pytest.approx(probability, abs=1e-9)
    assert case.record["probability"] == found.probability
    assert np.ptp(scores) > 0.001  # else the comparison would say little
    best = case.record["top_tiles"][0]
    assert best["xy_level0"] == bag.xy_level0[np.argmax(scores)].tolist()
    assert best["score"] == pytest.approx(scores.max(), rel=1e-6)


def test_a_slide_is_tiled_as_those_of_the_training_were(case: Case, tmp_path: Path) -> None:
    settings = TileSettings("all", size_px=256, mpp=0.6, quality=75)
    slide = Slide("Case_7", case.slide, None, "p", None, "", None, None, {})
    assert tile_slide(slide, shards_in(tmp_path), settings).status == "tiled"
    assert embed(tmp_path / "shards", str(case.encoder), tmp_path / "features") == 0
    card = read_card(tmp_path / "features" / "Case_7.h5")
    assert card is not None
    run = _with_card(case, tmp_path / "run", tiles=card.tiles)
    bag = read_bag(tmp_path / "features" / "Case_7.h5")
    with open_planes(case.slide) as planes:
        found = load_diagnoser(run).diagnose("Case_7", planes)
    assert np.array_equal(found.xy_level0, bag.xy_level0)
    assert len(found.scores) > 12  # the corners of the slide too
    np.testing.assert_allclose(found.scores, load_head(run).judge(bag.features)[1], rtol=1e-6)
    assert load_diagnoser(run, area="disc").tiles == dataclasses.replace(settings, area="disc")


def test_json_says_what_was_found_and_with_what(case: Case) -> None:
    record = case.record
    assert record["slide_id"] == "Case_7"
    assert record["research_use_only"] == RESEARCH_USE_ONLY
    assert record["operating_point"] == 0.4
    assert (record["assessable"], record["reasons"]) == (True, [])
    unlimited = {"focus": None, "distance": None, "light": None, "stain": None}
    assert record["limits"] == {"tiles": 1, **unlimited}  # of a head that knows of no others
    assert record["measured"]["tiles"] == 12
    assert record["measured"]["focus"] > 0
    assert record["decision"] == ("suspicious – review" if record["probability"] >= 0.4 else "below operating point")
    assert record["tiles"] == {"count": 12, "size_px": 320, "mpp": 0.5, "size_level0": 640}
    assert record["model"]["encoder"] == {
        "name": "encoder.safetensors",
        "architecture": "resnet10t",
        "sha256": load_encoder(str(case.encoder), "cpu").card.sha256,
    }
    assert re.fullmatch("[0-9a-f]{64}", record["model"]["head"]["sha256"])
    assert record["model_saw_this_slide_in_training"] == []
    tops = record["top_tiles"]
    assert [tile["rank"] for tile in tops] == list(range(1, 11))
    assert [tile["score"] for tile in tops] == sorted((tile["score"] for tile in tops), reverse=True)
    assert tops[0]["percentile"] == pytest.approx(100 * 11 / 12)


def test_geojson_holds_the_top_tiles_in_level_0_pixels(case: Case) -> None:
    collection = json.loads((case.out / "Case_7.geojson").read_text(encoding="utf-8"))
    assert collection["type"] == "FeatureCollection"
    assert collection["research_use_only"] == RESEARCH_USE_ONLY
    for feature, tile in zip(collection["features"], case.record["top_tiles"], strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        x, y = tile["xy_level0"]
        assert feature["geometry"]["type"] == "Polygon"
        assert ring == [[x, y], [x + 640, y], [x + 640, y + 640], [x, y + 640], [x, y]]
        assert min(min(point) for point in ring) >= 0
        assert max(max(point) for point in ring) <= SIDE
        assert feature["properties"]["objectType"] == "annotation"


class _Page(HTMLParser):
    """The pictures, links and marked elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.elements if name in (attrs.get("class") or "").split()]


def test_page_shows_ten_tiles_at_40x_as_openslide_reads_them(case: Case) -> None:
    page = _Page(case.page)
    pictures = [attrs["src"] or "" for tag, attrs in page.elements if tag == "img"]
    assert len(page.of_class("tile")) == len(page.of_class("pin")) == len(pictures) == 10
    assert RESEARCH_USE_ONLY in case.page
    with openslide.OpenSlide(case.slide) as slide:
        for picture, tile in zip(pictures, case.record["top_tiles"], strict=True):
            shown = simplejpeg.decode_jpeg(base64.b64decode(picture.partition("base64,")[2]))
            region = np.asarray(slide.read_region(tuple(tile["xy_level0"]), 0, (640, 640)).convert("RGB"))
            assert shown.shape == (640, 640, 3)
            assert np.abs(shown.astype(int) - region).mean() < 2  # JPEG at quality 92


def test_page_needs_no_other_file(case: Case) -> None:
    for _, attrs in _Page(case.page).elements:
        for name in ("src", "href"):
            assert (attrs.get(name) or "data:").startswith("data:")
    assert "url(" not in case.page
    assert "@import" not in case.page


def test_nothing_tells_who_the_patient_is_or_where_the_files_lay(case: Case) -> None:
    """The slide itself does: its label, barcode and description are what must not be passed on."""
    source = case.slide.read_bytes()
    assert any(word.encode() in source for word in dataclasses.astuple(IDENTITY))
    secrets = [*dataclasses.astuple(IDENTITY), "MUSTERMANN", "Erika", str(case.slide.parent), "Case 7.svs"]
    files = sorted(case.out.iterdir())
    assert [file.name for file in files] == ["Case_7-heatmap.jpg", "Case_7.geojson", "Case_7.html", "Case_7.json"]
    for file in files:
        content = file.read_bytes()
        assert [word for word in secrets if word.encode() in content] == []


def test_a_slide_that_fails_does_not_stop_the_others(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    broken = tmp_path / "broken.svs"
    broken.write_bytes(case.slide.read_bytes()[:3000])
    whole = tmp_path / "whole.svs"
    whole.symlink_to(case.slide)
    status = main(["diagnose", str(broken), str(whole), "--model", str(case.run), "--out", str(tmp_path / "out")])
    told = capfd.readouterr().err
    assert status == 1
    assert re.search(r"failed: broken: .*broken\.svs", told)
    assert "Traceback" not in told
    assert sorted(path.name for path in (tmp_path / "out").glob("[!w]*")) == []
    assert sorted(path.name for path in (tmp_path / "out").glob("whole*")) == [
        "whole-heatmap.jpg",
        "whole.geojson",
        "whole.html",
        "whole.json",
    ]


def test_decision_follows_the_operating_point(case: Case) -> None:
    with open_planes(case.slide) as planes:
        found = load_diagnoser(case.run).diagnose("Case_7", planes)
    at = dataclasses.replace(found, operating_point=found.probability)
    above = dataclasses.replace(found, operating_point=np.nextafter(found.probability, 1))
    assert (at.decision, above.decision) == ("suspicious – review", "below operating point")


def test_files_that_do_not_belong_together_are_refused(case: Case, tmp_path: Path) -> None:
    def refusal(model: Path, encoder: str | None = None, slides: list[Path] | None = None) -> str:
        with pytest.raises(UsageError) as caught:
            diagnose(slides or [case.slide], model, tmp_path / "out", encoder)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert re.search("gives 2048 features.* takes 512", refusal(case.run, "random:resnet26t"))
    assert "is not the one" in refusal(case.run, "random:resnet10t")
    assert "--encoder" in refusal(_with_card(case, tmp_path / "moved", encoder="gone/encoder.safetensors"))
    assert "papsmear embed" in refusal(_with_card(case, tmp_path / "foreign", encoder=None, encoder_sha256=None))
    assert "no trained head" in refusal(tmp_path / "nothing")
    assert "nowhere.svs" in refusal(case.run, slides=[tmp_path / "nowhere.svs"])
    assert "rename one" in refusal(case.run, slides=[case.slide, shutil.copy(case.slide, tmp_path / "Case_7.svs")])


def test_a_slide_of_the_training_and_equal_scores_are_told_and_give_no_nan(case: Case, tmp_path: Path) -> None:
    trained = load_head(_with_card(case, tmp_path / "run", train_slides=("Case_7",)))
    for parameter in trained.head.parameters():
        torch.nn.init.zeros_(parameter)
    save_head(tmp_path / "run" / NAME, trained.head, trained.card)
    assert diagnose([case.slide], tmp_path / "run", tmp_path) == 0
    record = json.loads((tmp_path / "Case_7.json").read_text(), parse_constant=pytest.fail)
    assert record["probability"] == 0.5
    assert {tile["score"] for tile in record["top_tiles"]} == {np.float32(1 / 12)}
    assert record["model_saw_this_slide_in_training"] == ["head"]
    page = (tmp_path / "Case_7.html").read_text()
    for warning in ("flatter", "says nothing"):
        assert warning in page
        assert warning not in case.page


def test_a_slide_with_fewer_than_ten_tiles() -> None:
    one = Diagnosis(
        "a",
        0.5,
        (700, 700),
        0.25,
        TileSettings(),
        640,
        {},
        0.1,
        np.array([[9, 7]], np.int32),
        np.array([1], np.float32),
    )
    assert one.top_tiles() == [TopTile(1, (9, 7), 640, 1.0, 0.0)]


def test_rectangles_are_cut_at_the_edge_of_the_slide() -> None:
    collection = feature_collection([TopTile(1, (300, 100), 640.5, 0.5, 99.0)], (900, 700))
    assert collection["features"][0]["geometry"]["coordinates"] == [
        [[300, 100], [900, 100], [900, 700], [300, 700], [300, 100]]
    ]


def test_heat_map_colours_each_tile_where_it_lies() -> None:
    overview = np.full((60, 100, 3), 240, np.uint8)  # 1,000 x 600 level-0 pixels
    xy_level0 = np.array([[200, 100], [600, 100], [600, 300]])
    heat = draw_heatmap(overview, 10.0, xy_level0, 200, np.array([0.1, 0.2, 0.7])).astype(int)
    lightness = [heat[y : y + 20, x : x + 20].sum(axis=2) for x, y in xy_level0 // 10]
    assert all(np.ptp(tile) == 0 for tile in lightness)
    assert lightness[0][0, 0] > lightness[1][0, 0] > lightness[2][0, 0]  # the higher the darker
    touched = np.zeros((60, 100), bool)
    for x, y in xy_level0 // 10:
        touched[y : y + 20, x : x + 20] = True
    assert (heat[~touched] == 240).all()


def test_heat_map_of_tiles_smaller_than_a_pixel() -> None:
    overview = np.full((4, 4, 3), 240, np.uint8)
    heat = draw_heatmap(overview, 1000.0, np.array([[0, 0], [300, 0], [2000, 1000]]), 300, np.array([0.0, 9.0, 1.0]))
    assert heat[0, 0].sum() < heat[1, 2].sum() < 720  # the highest of the tiles that share a pixel is seen


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40))
def test_percentile_ranks_count_what_lies_below(scores: list[float]) -> None:
    expected = [
        (sum(other < score for other in scores) + 0.5 * sum(other == score for other in scores)) / len(scores)
        for score in scores
    ]
    np.testing.assert_allclose(percentile_ranks(np.array(scores)), expected)
