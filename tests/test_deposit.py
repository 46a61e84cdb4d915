"""The deposit: discs of known place in pictures of every kind of slide, and slides that have none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from papsmear.errors import InputError
from papsmear.tiling.deposit import Deposit, find_deposit, fit_disc, overview_of, stained_mask
from papsmear.tiling.reader import open_slide


def disc_mask(shape: tuple[int, int], x: float, y: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.asarray(np.hypot(columns + 0.5 - x, rows + 0.5 - y) <= radius)


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def deposit_of(path: Path, area: Any) -> Deposit:
    with open_slide(path) as reader:
        return find_deposit(reader, area, *overview_of(reader))


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


@pytest.mark.parametrize("case", ["whole", "sparse", "cut off", "dusty", "full picture"])
def test_the_circle_under_scattered_cover(case: str) -> None:
    rng = np.random.default_rng(3)
    shape = (300, 260)
    x, y, radius = {"cut off": (60.0, 150.0, 90.0), "full picture": (130.0, 150.0, 128.0)}.get(
        case, (140.0, 130.0, 80.0)
    )
    truth = disc_mask(shape, x, y, radius)
    covered = truth & (rng.random(shape) < (0.55 if case == "sparse" else 0.95))
    if case == "dusty":
        covered |= ~truth & (rng.random(shape) < 0.05)
        covered[:12] = True  # the cover slip's edge
    circle = fit_disc(covered)
    assert circle is not None
    assert iou(disc_mask(shape, *circle), truth) > 0.97


def test_no_circle_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    assert fit_disc(np.zeros((100, 80), bool)) is None
    assert fit_disc(np.ones((100, 80), bool)) is None
    assert fit_disc(rng.random((100, 80)) < 0.5) is None
    stripes = np.zeros((100, 100), bool)
    stripes[45:55] = True
    assert fit_disc(stripes) is None


def test_stained_pixels_are_seen_faint_or_dark_whatever_the_glass() -> None:
    rng = np.random.default_rng(1)
    for glass in ((255, 255, 254), (243, 240, 238), (215, 220, 210)):
        rgb = np.full((200, 200, 3), glass, np.float64)
        rgb[50:60, 50:60] *= 0.9
        rgb[100:110, 100:110] *= (0.5, 0.3, 0.6)
        rgb += rng.normal(0, 1, rgb.shape)
        rgb[:, 190:] = 255  # never scanned
        mask = stained_mask(np.clip(rgb, 0, 255).astype(np.uint8))
        assert mask[50:60, 50:60].mean() > 0.9
        assert mask[100:110, 100:110].all()
        assert mask[120:].mean() < 0.002


def test_tissue_is_what_is_stained(small_slide: Any) -> None:
    found = deposit_of(small_slide.path, "tissue")
    assert found.circle_level0 is None
    assert found.contains(np.array([small_slide.centre_xy_level0, (20.0, 20.0)])).tolist() == [True, False]
    filled = np.zeros(small_slide.rgb.shape[:2], np.uint8)
    cv2.fillPoly(filled, [np.rint(o).astype(np.int32) for o in found.outlines_xy_level0], 1)  # holes by parity
    mask = cv2.resize(found.mask.astype(np.uint8), filled.shape[::-1], interpolation=cv2.INTER_NEAREST)
    assert iou(filled > 0, mask > 0) > 0.97


def test_all_is_all(small_slide: Any) -> None:
    found = deposit_of(small_slide.path, "all")
    assert found.contains(np.array([(0.0, 0.0), (2399.0, 1999.0)])).all()
    assert found.outlines_xy_level0[0].tolist() == [[0, 0], [2400, 0], [2400, 2000], [0, 2000]]


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
