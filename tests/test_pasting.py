"""Pasting: the three formulas, cell and place by the generator alone, sides and probability, and seams."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from papsmear.errors import InputError, UsageError
from papsmear.probes.datasets import read_cells
from papsmear.probes.labelled import LabelledCell, labelled_cells
from papsmear.probes.pasted import PastedTiles
from papsmear.probes.pasting import LOOSE_PX, METHODS, Method, Pasting, pasted
from papsmear.probes.poisson import poisson

RNG = np.random.default_rng(0)
CANVAS = RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8)


def cell(label: int = 1, shape: tuple[int, int] = (10, 12), masked: bool = False) -> LabelledCell:
    image = RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)
    inside = np.zeros(shape, bool)
    inside[3:7, 4:9] = True
    return LabelledCell(f"{label}", image, label, inside if masked else None)


# --- the formulas -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_formulas(method: Method, masked: bool) -> None:
    """In Ω what the formula says, rounded and clipped; everywhere else the canvas."""
    made, x, y, share = cell(masked=masked), 30, 5, 0.25
    tile = pasted(CANVAS, made, (x, y), method, share)
    window = (slice(y, y + 10), slice(x, x + 12))
    under, inside = CANVAS[window].astype(float), np.ones((10, 12), bool) if made.inside is None else made.inside
    if method == "paste":
        expected = made.image.astype(float)
    elif method == "blend":
        expected = 0.75 * made.image + 0.25 * under
    else:
        if masked:
            around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * LOOSE_PX + 1,) * 2)
            inside = cv2.dilate(inside.astype(np.uint8), around) > 0
        expected = poisson(made.image, under, inside if masked else None)
    wanted = CANVAS.copy()
    wanted[window][inside] = np.clip(np.round(expected), 0, 255)[inside]
    np.testing.assert_array_equal(tile, wanted)
    assert tile.dtype == np.uint8
    assert (tile != CANVAS).any()


def test_a_canvas_is_never_written_to() -> None:
    before = CANVAS.copy()
    for method in METHODS:
        made = Pasting([cell(0), cell(1)], method, 0.0)
        made(CANVAS, 0, np.random.default_rng(0))[:] = 0
        made(CANVAS, 1, np.random.default_rng(0))[:] = 0
    np.testing.assert_array_equal(CANVAS, before)


# --- cell, place, sides, probability ----------------------------------------------------------------------------


def test_every_place_where_the_cell_fits_whole_is_equally_likely() -> None:
    pasting, rng = Pasting([cell(shape=(38, 47))]), np.random.default_rng(0)
    counts = np.zeros((3, 4))
    for _ in range(1200):
        _, (x, y), share = pasting.draw(CANVAS, 1, rng)
        assert 0 <= share < 1
        counts[y, x] += 1
    assert (np.abs(counts - 100) < 5 * np.sqrt(100 * 11 / 12)).all(), "each of the 12 places, within five sd"


def test_cells_that_do_not_fit_are_not_drawn() -> None:
    large, small = cell(shape=(41, 5)), cell(shape=(40, 50))
    drawn = {id(Pasting([large, small]).draw(CANVAS, 1, np.random.default_rng(i))[0]) for i in range(20)}
    assert drawn == {id(small)}
    with pytest.raises(InputError, match="no positive cell fits whole on a tile of 50x40 px"):
        Pasting([large, cell(0)]).draw(CANVAS, 1, np.random.default_rng(0))


def test_positive_cells_go_on_positive_canvases_and_negative_ones_on_negative() -> None:
    cells = [cell(label) for label in (0, 1, 1, 0, 1)]
    for label in (0, 1):
        drawn = [Pasting(cells).draw(CANVAS, label, np.random.default_rng(i))[0] for i in range(60)]
        assert {id(found) for found in drawn} == {id(found) for found in cells if found.label == label}


def test_probability_is_of_negative_canvases_only() -> None:
    cells = [cell(0), cell(1)]

    def share_pasted(label: int, probability: float) -> float:
        pasting = Pasting(cells, "paste", probability)
        tiles = [pasting(CANVAS, label, np.random.default_rng(i)) for i in range(400)]
        return float(np.mean([(tile != CANVAS).any() for tile in tiles]))

    assert [share_pasted(1, p) for p in (0, 0.5, 1)] == [1, 1, 1]
    assert [share_pasted(0, p) for p in (0, 1)] == [0, 1]
    assert abs(share_pasted(0, 0.5) - 0.5) < 5 * 0.5 / 20


def test_cell_and_place_do_not_hang_on_method_and_probability() -> None:
    cells = [cell(label) for label in (0, 1, 0, 1)]
    for i in range(40):
        tiles = [Pasting(cells, "paste", p)(CANVAS, 0, np.random.default_rng(i)) for p in (0.5, 1.0)]
        assert (tiles[0] == tiles[1]).all() or (tiles[0] == CANVAS).all()
    changed = [
        np.argwhere((Pasting(cells, m, 1.0)(CANVAS, 0, np.random.default_rng(3)) != CANVAS).any(-1)) for m in METHODS
    ]
    boxes = [(found.min(0).tolist(), found.max(0).tolist()) for found in changed]
    assert boxes[0] == boxes[1]
    (top, left), (bottom, right) = boxes[2]
    assert ([top - 1, left - 1], [bottom + 1, right + 1]) == boxes[0], "poisson leaves the outermost pixels"


@pytest.mark.parametrize(("method", "probability"), [("glue", 0.5), ("paste", 1.5), ("paste", -0.1)])
def test_what_is_refused(method: Method, probability: float) -> None:
    with pytest.raises(UsageError, match=r"glue|1\.5|-0\.1"):
        Pasting([cell()], method, probability)


# --- online -----------------------------------------------------------------------------------------------------


def test_online_tiles_are_the_same_for_any_workers_and_others_each_epoch() -> None:
    canvases = RNG.integers(0, 256, (12, 40, 50, 3)).astype(np.uint8)
    labels = [1, 0] * 6
    tiles = PastedTiles(list(canvases), labels, Pasting([cell(0), cell(1), cell(0), cell(1)]), seed=3)
    epochs = []
    for epoch, workers in ((0, 0), (0, 2), (1, 0)):
        loader = tiles.loader(4, workers)
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        batches = [(made.numpy(), found.numpy()) for made, found in loader]
        assert [made.shape for made, _ in batches] == [(4, 40, 50, 3)] * 3
        epochs.append((np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])))
    np.testing.assert_array_equal(epochs[0][0], epochs[1][0])
    np.testing.assert_array_equal(epochs[0][1], epochs[1][1])
    assert sorted(epochs[0][1]) == sorted(labels)
    for epoch, (made, found) in ((0, epochs[0]), (1, epochs[2])):  # every canvas once, with its label
        whose = [int(np.abs(canvases - tile.astype(int)).sum((1, 2, 3)).argmin()) for tile in made]
        assert sorted(whose) == list(range(12))
        assert [labels[i] for i in whose] == found.tolist()
        for i, tile in zip(whose, made, strict=True):
            np.testing.assert_array_equal(tile, tiles.tile(epoch, i))
    assert all((tiles.tile(0, i) != tiles.tile(1, i)).any() for i in range(0, 12, 2)), "positive ones, always pasted"


# --- seams ------------------------------------------------------------------------------------------------------


def across_and_around(tile: NDArray[np.uint8], inside: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean step from pixel to pixel across the edge of `inside`, and within four pixels of it on either side."""
    square = np.ones((3, 3), np.uint8)
    wide, narrow = (f(inside.astype(np.uint8), square, iterations=4) for f in (cv2.dilate, cv2.erode))
    across, around = [], []
    for axis in (0, 1):
        values, mask, near = (np.moveaxis(a, axis, 0) for a in (tile.astype(float), inside, wide > narrow))
        steps, edge = np.abs(values[1:] - values[:-1]), mask[1:] != mask[:-1]
        across.append(steps[edge].ravel())
        around.append(steps[near[1:] & near[:-1] & ~edge].ravel())
    return float(np.concatenate(across).mean()), float(np.concatenate(around).mean())


def changed_region(
    made: LabelledCell, xy: tuple[int, int], shape: tuple[int, int], method: Method
) -> NDArray[np.bool_]:
    inside = np.ones(made.image.shape[:2], bool) if made.inside is None else made.inside
    if method == "poisson":
        if made.inside is not None:
            around = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * LOOSE_PX + 1,) * 2)
            inside = cv2.dilate(inside.astype(np.uint8), around) > 0
        inside = np.pad(inside[1:-1, 1:-1], 1)
    region = np.zeros(shape, bool)
    region[xy[1] : xy[1] + inside.shape[0], xy[0] : xy[0] + inside.shape[1]] = inside
    return region


def seams(canvases: list[NDArray[np.uint8]], cells: list[LabelledCell], method: Method) -> float:
    """How many times as large as around it the step across the edge is, over all cells."""
    found = []
    for number, made in enumerate(cells):
        canvas = canvases[number % len(canvases)]
        made, xy, _ = Pasting([made], method).draw(canvas, made.label, np.random.default_rng(number))
        region = changed_region(made, xy, canvas.shape[:2], method)
        found.append(across_and_around(pasted(canvas, made, xy, method, 0.0), region))
    across, around = np.mean(found, axis=0)
    return float(across / around)


def drawn_cell(label: int, glass: tuple[int, int, int], masked: bool) -> LabelledCell:
    """A cell with a soft edge on glass, with the camera's noise."""
    image = np.full((60, 70, 3), glass, np.uint8)
    cv2.ellipse(image, (35, 30), (24, 18), 20, 0, 360, (150, 120, 160), -1)
    cv2.circle(image, (33, 31), 7, (80, 60, 120), -1)
    inside = cv2.ellipse(np.zeros((60, 70), np.uint8), (35, 30), (24, 18), 20, 0, 360, 1, -1) > 0
    noisy = cv2.GaussianBlur(image, (0, 0), 1) + RNG.normal(0, 2, image.shape)
    return LabelledCell("drawn", noisy.clip(0, 255).astype(np.uint8), label, inside if masked else None)


@pytest.mark.parametrize("masked", [False, True])
def test_paste_has_a_seam_and_poisson_has_none(masked: bool) -> None:
    """On canvases of another glass, uneven and noisy: paste jumps at the edge, poisson goes on as beside it."""
    y, x = np.mgrid[:160, :160]
    waves = [np.sin(x / (9 + i)) + np.cos(y / (7 + i)) for i in range(4)]
    canvases = [
        (np.stack([225 + 8 * w, 228 + 6 * w, 222 + 7 * w], -1) + RNG.normal(0, 2, (160, 160, 3))).astype(np.uint8)
        for w in waves
    ]
    cells = [drawn_cell(i % 2, glass, masked) for i, glass in enumerate([(170, 165, 190), (140, 150, 160)] * 4)]
    assert seams(canvases, cells, "paste") > 5
    assert seams(canvases, cells, "poisson") < 1.5


@pytest.mark.parametrize("masked", [False, True])
def test_no_seams_of_real_cells_on_a_real_slide(shared_data: Path, tmp_path: Path, masked: bool) -> None:
    """Herlev cells on tiles of a slide of another stain, whose structures run into the edge of the pasted region."""
    import openslide

    for tree in ("images", "masks"):
        for folder in sorted((shared_data / "herlev" / tree).iterdir()):
            (tmp_path / tree / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[::9][:7]:
                (tmp_path / tree / folder.name / file.name).symlink_to(file)
    found = labelled_cells(read_cells("herlev", tmp_path), 0.5, masked)
    assert (len(found.cells), found.scaled_by_class) == (49, True)
    with openslide.OpenSlide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        canvases = [
            np.array(slide.read_region((320 * i, 320 * j), 0, (320, 320)).convert("RGB"))
            for j in range(9)
            for i in range(6)
        ]
    assert seams(canvases, list(found.cells), "paste") > 8
    assert seams(canvases, list(found.cells), "poisson") < 1.7
