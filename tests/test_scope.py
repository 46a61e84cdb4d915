"""Which slides a head can judge: those like the training's; others are called not assessable, and told why."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import torch

from papsmear.cohort import read_slides
from papsmear.mil.bags import BagCard, read_attribute, read_bag, write_bag
from papsmear.mil.colour import Colours, read
from papsmear.mil.data import BagData
from papsmear.mil.diagnose import diagnose
from papsmear.mil.embed import embed
from papsmear.mil.heads import build_head
from papsmear.mil.model import NAME, HeadCard, load_head, save_head
from papsmear.mil.provenance import Provenance
from papsmear.mil.scope import Measured, Scope, doubts, sharpness
from papsmear.ssl.encoder import export_encoder, load_encoder
from papsmear.tiling.cut import TileSettings
from papsmear.tiling.phantom.cohort import phantom
from papsmear.tiling.phantom.identity import Identity
from papsmear.tiling.phantom.svs import write_svs
from papsmear.tiling.slide import tile_slide

SETTINGS = TileSettings()
Change = Callable[[np.ndarray], np.ndarray]


def _distance(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> float:
    """As `distance`, one feature after the other."""
    z = [(sum(float(v) for v in column) / len(column) - m) / s for column, m, s in zip(x.T, mean, std, strict=True)]
    return sum(map(abs, z)) / len(z)


def _bags(folder: Path, focus: dict[str, float]) -> BagData:
    """Slides s0 to s7 in four folds, of 10, 11 and so on tiles; those of fold 1 lie apart."""
    lines = [f"s{n},s{n}.svs,{n % 2},{n // 2}" for n in range(8)]
    (folder / "slides.csv").write_text("\n".join(["slide_id,path,label,fold", *lines]) + "\n")
    rng, card = np.random.default_rng(0), BagCard("e", "0" * 64, SETTINGS, 640)
    for n in range(8):
        x = rng.normal(3.0 * (n == 3), 1, (10 + n, 5)).astype(np.float16)
        more = {"focus": str(focus[f"s{n}"])} if f"s{n}" in focus else {}
        write_bag(folder / "features" / f"s{n}.h5", x, np.zeros((10 + n, 2), np.int32), card, **more)
    bags = BagData(folder / "features", folder / "slides.csv", fold=0)
    bags.setup("fit")
    return bags


def test_scope_is_that_of_the_training_and_validation_slides(tmp_path: Path) -> None:
    bags = _bags(tmp_path, {f"s{n}": 100.0 + n for n in range(8)} | {"s0": 1.0})
    mean, std = bags.feature_statistics()
    scope = Scope.of(bags, mean, std)
    ids = [*bags.ids("train"), *bags.ids("validation")]
    assert sorted(ids) == ["s2", "s3", "s4", "s5", "s6", "s7"]
    distances = [_distance(read_bag(bags.features / f"{slide_id}.h5").features, mean, std) for slide_id in ids]
    assert scope.distance == pytest.approx(np.percentile(distances, 99), rel=1e-4)
    assert scope.distance > 1.5  # s3 of the validation is the farthest
    assert (scope.tiles, scope.focus) == (14, 102.0)


def test_bags_that_do_not_tell_their_focus_give_no_limit_for_it(tmp_path: Path) -> None:
    bags = _bags(tmp_path, {})
    scope = Scope.of(bags, *bags.feature_statistics())
    assert scope.focus is None
    assert doubts(Measured(100, 1e-9, 0.1), scope.limits()) == ()


def test_limits_themselves_are_within() -> None:
    light, stain = (Colours(40, (0.0,) * p, ((1.0,) * p,) * p) for p in (3, 5))
    limits = Scope(tiles=5200, focus=100.0, distance=0.4, light=light, stain=stain).limits()
    assert limits == Measured(520, 50.0, pytest.approx(0.8), light.limit, stain.limit)
    assert doubts(limits, limits) == ()
    beyond_them = {
        "tiles": (519, "few"),
        "focus": (49.9, "focus"),
        "distance": (0.81, "unlike"),
        "light": (9.0, "brightness"),
        "stain": (9.0, "order of the channels"),
    }
    for name, (beyond, word) in beyond_them.items():
        (reason,) = doubts(dataclasses.replace(limits, **{name: beyond}), limits)
        assert word in reason
    assert len(doubts(Measured(1, 0.1, 9, 9, 9), limits)) == 5
    assert Scope(tiles=3, focus=None, distance=0.4).limits().tiles == 1


def test_sharpness_is_what_a_tenth_of_the_tiles_reach() -> None:
    assert sharpness([float(n) for n in range(101)]) == 90
    assert sharpness([7.0]) == 7


def test_scope_travels_with_the_head_and_old_heads_have_none(tmp_path: Path) -> None:
    bags = Provenance(5, 0, None, None, SETTINGS, (), ())
    stain = Colours.of([tuple(row) for row in np.random.default_rng(0).normal(size=(8, 5)).tolist()])
    scope = Scope(12, 3.5, 0.25, stain=stain)
    card = HeadCard(head="mean", head_args={}, threshold=0.5, scope=scope, **vars(bags))
    save_head(tmp_path / NAME, build_head("mean", 5, {}), card)
    assert load_head(tmp_path).card == card
    old = {key: value for key, value in json.loads(json.dumps(dataclasses.asdict(card))).items() if key != "scope"}
    assert HeadCard.from_dict(old) == dataclasses.replace(card, scope=None)
    older = json.loads(json.dumps(dataclasses.asdict(card)))
    del older["scope"]["light"], older["scope"]["stain"]
    assert HeadCard.from_dict(older).scope == Scope(12, 3.5, 0.25)


@dataclasses.dataclass(frozen=True)
class Bench:
    """Phantom slides, and a model of all but the last two."""

    slides: list[Path]
    run: Path

    def told(self, slides: list[Path], out: Path, **options: object) -> dict[str, dict]:
        """What the JSON files say of slides, by their ids."""
        assert diagnose(slides, self.run, out, **options) == 0
        return {file.stem: json.loads(file.read_text()) for file in out.glob("*.json")}


def _bench(cohort: Path, folder: Path, encoder_name: str, input_px: int) -> Bench:
    """A head for an encoder on the shards of a cohort, in a folder of its own."""
    network = load_encoder(encoder_name, "cpu")
    export_encoder(folder / "e.safetensors", network.network, dataclasses.replace(network.card, input_px=input_px))
    assert embed(cohort / "shards", str(folder / "e.safetensors"), folder / "features") == 0
    bags = BagData(folder / "features", cohort / "slides.csv", fold=3)  # tests on s6 and s7
    bags.setup("fit")
    mean, std = bags.feature_statistics()
    head = build_head("mean", bags.width, {})
    head.mean.copy_(torch.from_numpy(mean))
    head.std.copy_(torch.from_numpy(std))
    scope = Scope.of(bags, mean, std)
    card = HeadCard(head="mean", head_args={}, threshold=0.5, scope=scope, **vars(Provenance.of(bags)))
    save_head(folder / "run" / NAME, head, card)
    return Bench(sorted((cohort / "slides").glob("*.svs")), folder / "run")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight phantom slides, tiled."""
    folder = tmp_path_factory.mktemp("scope")
    phantom(folder, slides=8, diameter_mm=1, sites=1, cell_sets=0, workers=1)
    lines = [f"s{n},slides/phantom_000{n + 1}.svs,{n % 2},{n // 2}" for n in range(8)]
    (folder / "slides.csv").write_text("\n".join(["slide_id,path,label,fold", *lines]) + "\n")
    (folder / "shards").mkdir()
    for slide in read_slides(folder / "slides.csv"):
        assert tile_slide(slide, folder / "shards", SETTINGS).status == "tiled"
    return folder


@pytest.fixture(scope="module")
def bench(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A model whose encoder has random weights."""
    return _bench(cohort, tmp_path_factory.mktemp("random"), "random:resnet10t", 64)


def _changed(slide: Path, out: Path, change: Change) -> Path:
    """A slide with other pixels."""
    with openslide.OpenSlide(slide) as source:
        size = source.dimensions
        rgb = change(np.asarray(source.read_region((0, 0), 0, size).convert("RGB")))
    strips = (np.ascontiguousarray(rgb[y : y + 256]) for y in range(0, size[1], 256))
    write_svs(out, size, strips, 0.25, Identity("A", "B", "01/02/03", "C"))
    return out


def _grey(rgb: np.ndarray) -> np.ndarray:
    return np.repeat(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def test_slides_like_those_of_the_training_are_judged(bench: Bench, tmp_path: Path) -> None:
    told = bench.told(bench.slides, tmp_path)
    assert len(told) == 8
    assert [slide_id for slide_id, record in told.items() if not record["assessable"]] == []
    for record in told.values():
        assert 0 < record["measured"]["distance"] < record["limits"]["distance"]
        assert record["measured"]["focus"] > record["limits"]["focus"] > 0


def test_light_and_stain_are_those_of_the_bags(bench: Bench, tmp_path: Path) -> None:
    """Of the six slides of the training the stain has no limit; of all eight it has."""
    trained, scope = load_head(bench.run), load_head(bench.run).card.scope
    assert scope is not None
    assert scope.light is not None
    assert scope.stain is None
    numbers = {
        name: read(read_attribute(bench.run.parent / "features" / f"s{n}.h5", name) for n in range(8))
        for name in ("light", "stain")
    }
    colours = {name: Colours.of(of_slides) for name, of_slides in numbers.items()}
    card = dataclasses.replace(trained.card, scope=dataclasses.replace(scope, **colours))
    save_head(tmp_path / "run" / NAME, trained.head, card)
    changes: dict[str, Change] = {"half": lambda rgb: rgb // 2, "swapped": lambda rgb: rgb[..., ::-1]}
    false = [_changed(bench.slides[7], tmp_path / f"{name}.svs", change) for name, change in changes.items()]
    found = Bench(bench.slides, tmp_path / "run").told([bench.slides[7], *false], tmp_path / "out")
    good = found["phantom_0008"]
    assert good["assessable"]
    for name, those in colours.items():
        assert those is not None
        assert good["measured"][name] == pytest.approx(those.distance(numbers[name][7]), rel=1e-3)
        assert good["limits"][name] == those.limit
    assert any(reason.startswith("in another light than") for reason in found["half"]["reasons"])
    assert [reason.partition(" than")[0] for reason in found["swapped"]["reasons"]] == ["in another stain"]


def test_what_no_pap_smear_is_gets_no_figure(bench: Bench, tmp_path: Path) -> None:
    """Blurred and blank slides, too few tiles, and inverted colours, read whole: no deposit is found on those."""
    changes: dict[str, tuple[Change, str]] = {
        "blurred": (lambda rgb: cv2.GaussianBlur(rgb, (0, 0), 6), "out of focus"),
        "blank": (lambda rgb: np.full_like(rgb, 243), "no round cell deposit found: nothing lies on the glass"),
    }
    slides = [_changed(bench.slides[7], tmp_path / f"{name}.svs", change) for name, (change, _) in changes.items()]
    told = bench.told(slides, tmp_path / "out")
    for name, (_, reason) in changes.items():
        record = told[name]
        assert (record["assessable"], record["probability"], record["top_tiles"]) == (False, None, [])
        assert record["decision"] == "not assessable"
        assert record["reasons"][0].startswith(reason)
    listed = (tmp_path / "out" / "worklist.html").read_text()
    assert all(name in listed.partition("Not assessable:")[2] for name in changes)
    inverted = _changed(bench.slides[7], tmp_path / "inverted.svs", lambda rgb: 255 - rgb)
    (record,) = bench.told([inverted], tmp_path / "inverted", area="all").values()
    assert record["reasons"][0].startswith("unlike the slides of the training")
    assert record["measured"]["distance"] > 5 * record["limits"]["distance"]
    (few,) = bench.told([bench.slides[7]], tmp_path / "few", min_tiles=1000).values()
    assert few["reasons"] == [f"too few tiles: {few['tiles']['count']}, at least 1000 are needed"]


def test_tissue_and_grey_slides_are_not_what_a_real_encoder_saw(
    shared_data: Path, cohort: Path, tmp_path: Path
) -> None:
    bench = _bench(cohort, tmp_path, str(shared_data / "weights" / "efficientnet_lite0_imagenet.safetensors"), 96)
    grey = _changed(bench.slides[7], tmp_path / "grey.svs", _grey)
    told = bench.told([*bench.slides[6:], grey], tmp_path / "out")
    assert [slide_id for slide_id, record in told.items() if not record["assessable"]] == ["grey"]
    (tissue,) = bench.told([shared_data / "slides" / "CMU-1-Small-Region.svs"], tmp_path / "all", area="all").values()
    for record in (told["grey"], tissue):
        assert [reason.partition(":")[0] for reason in record["reasons"]] == ["unlike the slides of the training"]
