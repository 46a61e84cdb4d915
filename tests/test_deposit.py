"""The deposit: discs of known place in pictures of every kind of slide, and slides that have none."""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from papsmear import seeds
from papsmear.errors import InputError
from papsmear.tiling.deposit import Area, Deposit, DepositError, find_deposit, overview_of
from papsmear.tiling.grid import draw
from papsmear.tiling.phantom.faults import FAULTS, variant
from papsmear.tiling.phantom.overview import UM_PER_PX, Overview, overview_of_scene
from papsmear.tiling.reader import SlideReader, open_slide

SCENES = 8
LEVEL0_PX_PER_PX = UM_PER_PX / 0.5


def disc_mask(shape: tuple[int, int], x: float, y: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.asarray(np.hypot(columns + 0.5 - x, rows + 0.5 - y) <= radius)


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def deposit_of(path: Path, area: Any) -> Deposit:
    with open_slide(path) as reader:
        return find_deposit(reader, area, *overview_of(reader))


def filled(deposit: Deposit, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The inside of the outlines (holes by parity) on an overview, (H, W)."""
    mask = np.zeros(shape[:2], np.uint8)
    outlines = [outline / deposit.level0_px_per_px - 0.5 for outline in deposit.outlines_xy_level0]
    cv2.fillPoly(mask, [np.rint(outline * 16).astype(np.int32) for outline in outlines], 1, cv2.LINE_8, 4)
    return mask > 0


@pytest.fixture(scope="module")
def scenes() -> list[Overview]:
    """Overviews of phantom slides with deposits of 13 mm, no faults."""
    return [overview_of_scene(number, f"site {number}") for number in range(SCENES)]


@pytest.fixture(scope="module")
def reader(write_tiff: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlideReader]:
    """A slide of 0.5 µm/px, to look for a deposit on an overview that is given."""
    path = write_tiff(tmp_path_factory.mktemp("slide") / "faulty.tiff", np.full((256, 256, 3), 255, np.uint8))
    with open_slide(path) as slide:
        yield slide


def find(reader: SlideReader, rgb: NDArray[np.uint8], area: Area = "disc") -> Deposit:
    return find_deposit(reader, area, rgb, LEVEL0_PX_PER_PX)


def test_the_disc_of_a_small_slide(small_slide: Any) -> None:
    found = deposit_of(small_slide.path, "disc")
    shape = small_slide.rgb.shape[:2]
    truth = disc_mask(shape, *small_slide.centre_xy_level0, small_slide.radius_level0)
    assert found.circle_level0 is not None
    assert iou(disc_mask(shape, *found.circle_level0), truth) > 0.95
    (outline,) = found.outlines_xy_level0
    away = np.hypot(*(outline - found.circle_level0[:2]).T)
    np.testing.assert_allclose(away, found.circle_level0[2])
    content = found.as_json(small_slide.mpp)
    assert content["diameter_mm"] == pytest.approx(0.7, rel=0.04)
    assert 0.7 < content["confidence"] <= 1
    assert content["confidence"] == round(found.confidence, 3)


def test_deposits_are_found_on_300_faulty_slides(scenes: list[Overview], reader: SlideReader) -> None:
    """The truth is where the phantom's density of cells is above zero, ragged rim and all, cut to the slide.

    It is what cells can lie on, and knows nothing of circles: the best circle itself has a median IoU of 0.984 with
    it and at worst 0.965, so little of the 0.97 is left to faults.
    """
    scores = {}
    for number in range(300):
        slide, faults = variant(scenes[number % SCENES], number)
        rgb = slide.rgb()
        scores[f"variant {number}: {' + '.join(faults)}"] = iou(filled(find(reader, rgb), rgb.shape), slide.truth)
    worst = sorted(scores.items(), key=lambda named: named[1])[:5]
    assert np.median(list(scores.values())) >= 0.97, worst
    assert worst[0][1] >= 0.90, worst


def test_confidence_is_the_rim_that_is_seen(scenes: list[Overview], reader: SlideReader) -> None:
    clean = [find(reader, scene.rgb()).confidence for scene in scenes]
    assert min(clean) > 0.75
    for number, scene in enumerate(scenes):
        cut = FAULTS["cut_off"](scene, seeds.rng(number, "cut"))
        found = find(reader, cut.rgb())
        assert found.circle_level0 is not None
        turn = np.linspace(0, 2 * np.pi, 720, endpoint=False)
        x, y, radius = (v / LEVEL0_PX_PER_PX for v in found.circle_level0)
        height, width = cut.truth.shape
        at_x, at_y = x + radius * np.cos(turn), y + radius * np.sin(turn)
        on_slide = ((at_x > 0) & (at_x < width) & (at_y > 0) & (at_y < height)).mean()
        assert found.confidence == pytest.approx(clean[number] * on_slide, abs=0.12)


def test_slides_without_cells_are_refused_whatever_else_lies_on_them(
    scenes: list[Overview], reader: SlideReader
) -> None:
    others = ("lamp", "cover_slip", "bubbles", "dust", "pen", "unscanned", "wide")
    for number in range(50):
        slide = replace(scenes[number % 2], cells=np.zeros_like(scenes[number % 2].cells))
        chosen = seeds.rng(number, "chosen").choice(others, 1 + number % 3, replace=False)
        for name in sorted(chosen):
            slide = FAULTS[name](slide, seeds.rng(number, str(name)))
        with pytest.raises(DepositError, match=r"faulty\.tiff: no round cell deposit found: .*--area=tissue"):
            find(reader, slide.rgb())


def test_a_refusal_carries_its_picture(scenes: list[Overview], reader: SlideReader) -> None:
    tiny = np.full((900, 900, 3), 235, np.uint8)
    tiny[360:440, 260:340] = np.where(
        disc_mask((80, 80), 40, 40, 40)[..., None], scenes[6].rgb()[400:480, 400:480], 235
    )
    full = scenes[0].rgb()[320:620, 320:620]
    for rgb, reason in (
        (tiny, "the best circle, of 1.3 mm, is too small on a slide of 14 mm"),
        (full, "no round cell deposit found: "),
        (np.full((900, 900, 3), 235, np.uint8), "nothing lies on the glass"),
    ):
        with pytest.raises(DepositError, match=reason) as caught:
            find(reader, rgb)
        error = caught.value
        assert str(error).count("\n") == 0
        assert error.overview is rgb
        doubtful = Deposit("disc", error.outlines_xy_level0, np.ones((1, 1), bool), error.level0_px_per_px)
        picture = draw(error.overview, error.level0_px_per_px, doubtful, np.empty((0, 2), np.int64), 1)
        assert (picture != rgb).any() == bool(error.outlines_xy_level0)
        sent = pickle.loads(pickle.dumps(error))  # as between processes
        assert (type(sent), str(sent), sent.level0_px_per_px) == (DepositError, str(error), error.level0_px_per_px)
        np.testing.assert_array_equal(sent.overview, rgb)


def test_most_of_the_slide_is_no_deposit(scenes: list[Overview], reader: SlideReader) -> None:
    rgb = FAULTS["crowded"](scenes[1], seeds.rng(0, "crowded")).rgb()[330:620, 330:620]
    rgb[:8] = 235
    with pytest.raises(DepositError, match=r"9\d% of the slide is covered"):
        find(reader, rgb)
    dark = np.random.default_rng(0).integers(60, 200, rgb.shape).astype(np.uint8)
    dark[:16] = 235
    with pytest.raises(DepositError, match=r"9\d% of the slide is stained.*--area=all"):
        find(reader, dark, "tissue")


def test_tissue_is_what_is_stained(small_slide: Any) -> None:
    found = deposit_of(small_slide.path, "tissue")
    assert found.circle_level0 is None
    assert found.contains(np.array([small_slide.centre_xy_level0, (20.0, 20.0)])).tolist() == [True, False]
    assert iou(filled(found, found.mask.shape), found.mask) > 0.99
    assert 0.8 < found.confidence <= 1


def test_tissue_has_holes_and_several_pieces(reader: SlideReader) -> None:
    rgb = np.full((300, 400, 3), 235, np.uint8)
    truth = disc_mask((300, 400), 100, 120, 60) & ~disc_mask((300, 400), 110, 120, 25)
    truth |= disc_mask((300, 400), 300, 200, 40)
    rgb[truth] = np.random.default_rng(0).integers(100, 200, (truth.sum(), 3))
    found = find(reader, rgb, "tissue")
    assert len(found.outlines_xy_level0) == 3
    assert iou(filled(found, truth.shape), truth) > 0.98
    assert iou(found.mask, truth) > 0.98


def test_tissue_is_neither_ink_nor_specks(scenes: list[Overview], reader: SlideReader) -> None:
    clean = find(reader, scenes[0].rgb(), "tissue")
    marked = FAULTS["pen"](scenes[0], seeds.rng(3, "pen"))
    ink = (marked.glass - scenes[0].glass).max(axis=2) > 0.2
    assert ink.mean() > 0.03
    found = find(reader, marked.rgb(), "tissue")
    assert (found.mask & ink).sum() < 0.01 * ink.sum()
    near = cv2.dilate(ink.astype(np.uint8), np.ones((31, 31), np.uint8)) > 0
    assert iou(found.mask & ~near, clean.mask & ~near) > 0.97
    specks = scenes[0].rgb()
    specks[20:40:4, 20:40:4] = 90
    assert iou(find(reader, specks, "tissue").mask, clean.mask) > 0.99
    assert not find(reader, specks, "tissue").mask[15:45, 15:45].any()


def test_faint_tissue_is_doubtful(scenes: list[Overview], reader: SlideReader) -> None:
    faint = FAULTS["faint"](scenes[2], seeds.rng(0, "faint"))
    assert find(reader, faint.rgb(), "tissue").confidence < find(reader, scenes[2].rgb(), "tissue").confidence - 0.05


def test_all_is_all(small_slide: Any) -> None:
    found = deposit_of(small_slide.path, "all")
    assert found.contains(np.array([(0.0, 0.0), (2399.0, 1999.0)])).all()
    assert found.outlines_xy_level0[0].tolist() == [[0, 0], [2400, 0], [2400, 2000], [0, 2000]]
    assert found.confidence == 1


def test_slides_without_a_deposit_are_refused(write_tiff: Callable[..., Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 2, (1000, 1200, 3))
    blank = write_tiff(tmp_path / "blank.tiff", (238 + noise).astype(np.uint8))
    white = write_tiff(tmp_path / "white.tiff", np.full((1000, 1200, 3), 255, np.uint8))
    for path in (blank, white):
        with pytest.raises(InputError, match=rf"{path.name}: no round cell deposit found.*--area=tissue.*--area=all"):
            deposit_of(path, "disc")
        with pytest.raises(InputError, match=f"{path.name}: nothing stained found.*--area=all"):
            deposit_of(path, "tissue")
    full = rng.integers(60, 200, (1000, 1200, 3)).astype(np.uint8)
    full[:30, :30] = 240
    crowded = write_tiff(tmp_path / "full.tiff", cv2.GaussianBlur(full, (0, 0), 2).astype(np.uint8))
    with pytest.raises(InputError, match=r"full\.tiff: no round cell deposit found"):
        deposit_of(crowded, "disc")


def test_histology_is_no_disc(shared_data: Path) -> None:
    with pytest.raises(InputError, match="no round cell deposit found"):
        deposit_of(shared_data / "slides" / "CMU-1-Small-Region.svs", "disc")
