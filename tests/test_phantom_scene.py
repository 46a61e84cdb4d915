"""Phantom scenes: what lies where, and pixels that do not depend on how the slide is cut into blocks."""

import tracemalloc
from collections import deque
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from papsmear.tiling.phantom import scene as module
from papsmear.tiling.phantom.deposit import draw_deposit
from papsmear.tiling.phantom.glass import Glass
from papsmear.tiling.phantom.identity import Identity
from papsmear.tiling.phantom.ink import Ink, turned, turned_points
from papsmear.tiling.phantom.scene import Scene
from papsmear.tiling.phantom.svs import write_svs

DEPOSIT = draw_deposit(0.5, 0.5, np.random.default_rng(0))


def _picture(scene: Scene, z_um: float = 0.0) -> NDArray[np.uint8]:
    return np.concatenate(list(scene.strips(z_um)))


@pytest.fixture(scope="module")
def positive() -> Scene:
    return Scene(seed=5, site="site_1", diameter_mm=0.4, mpp=0.5, abnormal=0.1)


def test_deposit_is_a_round_spot_of_the_wanted_size() -> None:
    for seed in range(5):
        deposit = draw_deposit(3.0, 0.25, np.random.default_rng(seed))
        places = deposit.draw_xy(20_000, np.random.default_rng(1))
        away = np.hypot(*(places - deposit.centre_level0).T)
        assert away.max() < 6000 * 1.06
        assert np.quantile(away, 0.99) > 6000 * 0.9
        assert 0.5 < deposit.cells / (350 * np.pi * 1.5**2) < 1.9
        assert all(side % 16 == 0 and 13_500 < side < 14_500 for side in deposit.size_level0)
        inside = (places > 0) & (places < deposit.size_level0)
        assert inside.all()


@settings(max_examples=30)
@given(count=st.integers(0, 300), mean=st.floats(1.5, 8))
def test_groups_have_the_wanted_number(count: int, mean: float) -> None:
    places = DEPOSIT.draw_groups(count, mean, 10.0, np.random.default_rng(1))
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()


@given(turn=st.integers(0, 7), x=st.integers(0, 4), y=st.integers(0, 6))
def test_outlines_turn_as_pixels_do(turn: int, x: int, y: int) -> None:
    density = np.zeros((7, 5, 3), np.uint16)
    density[y, x] = 9
    ink = Ink(density, "kind", np.array([[x, y]], np.int32))
    (seen_x, seen_y), *_ = turned_points(ink, turn)
    after = turned(density, turn)
    assert after[seen_y, seen_x, 0] == 9
    assert after.sum() == 27


def test_blocks_of_any_size_give_the_same_pixels(positive: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clear:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, left: int, top: int, width: int, height: int) -> NDArray[np.uint16]:
            return np.zeros((height, width, 3), np.uint16)

    monkeypatch.setattr(module, "Glass", Clear)
    pictures = []
    for height, width in ((10_000, 10_000), (256, 200), (48, 1024)):
        monkeypatch.setattr(module, "TILE_PX", height)
        monkeypatch.setattr(module, "_BLOCK_PX", width)
        pictures.append(_picture(positive, z_um=1.0))
    assert pictures[0].shape[:2] == positive.size_level0[::-1]
    assert (pictures[0] < 200).any()
    np.testing.assert_array_equal(pictures[1], pictures[0])
    np.testing.assert_array_equal(pictures[2], pictures[0])


def test_blocks_of_glass_fit_together(positive: Scene) -> None:
    glass = Glass((5000, 300), positive.stain, np.random.default_rng(0))
    whole = glass(0, 0, 5000, 256)
    parts = [glass(left, 0, min(2048, 5000 - left), 256) for left in range(0, 5000, 2048)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert glass(4096, 256, 904, 44).shape == (44, 904, 3)
    assert len(np.unique(whole)) > 10


def _peak_bytes(width: int, folder: Path) -> int:
    """Of writing two strips of a slide."""
    scene = Scene(seed=5, site="site_1", diameter_mm=0.4, mpp=0.5, abnormal=0.1)
    scene.deposit = replace(scene.deposit, size_level0=(width, 512))
    tracemalloc.start()
    try:
        write_svs(folder / "a.svs", scene.size_level0, scene.strips(), 0.5, Identity("A B", "c", "d", "e"))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_by_little_more_than_one_strip_with_width(tmp_path: Path) -> None:
    narrow, wide = 8_208, 32_784  # no multiples of a tile's side
    grown = _peak_bytes(wide, tmp_path) - _peak_bytes(narrow, tmp_path)
    assert grown < 2 * 256 * 3 * (wide - narrow)


def test_things_out_of_focus_take_a_bounded_part_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(seed=5, site="site_1", diameter_mm=0.4, mpp=0.25, abnormal=0.1)

    def peak_bytes() -> int:
        tracemalloc.start()
        try:
            deque(scene.strips(z_um=3.0), maxlen=0)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    unbounded = peak_bytes()
    monkeypatch.setattr(module, "_BLURRED_BYTES", 2e6)
    assert peak_bytes() < unbounded - 10e6


def test_same_seed_same_pixels_another_seed_others(positive: Scene) -> None:
    again = Scene(seed=5, site="site_1", diameter_mm=0.4, mpp=0.5, abnormal=0.1)
    other = Scene(seed=6, site="site_1", diameter_mm=0.4, mpp=0.5, abnormal=0.1)
    np.testing.assert_array_equal(_picture(again), _picture(positive))
    assert not np.array_equal(_picture(other), _picture(positive))
    assert other.stain != positive.stain


def test_glass_around_the_spot_is_clean_and_cells_are_dark(positive: Scene) -> None:
    picture = _picture(positive)
    grey = picture.min(2)
    corners = np.concatenate([grey[:40, :40].ravel(), grey[-40:, -40:].ravel()])
    assert np.median(corners) > 200
    assert corners.std() < 6
    assert np.quantile(grey, 0.02) < 140


@pytest.mark.parametrize(("share", "least"), [(0.0, 0), (1e-6, 1), (0.5, 10)])
def test_abnormal_cells_by_share_and_at_least_one(share: float, least: int) -> None:
    scene = Scene(seed=1, site="site_1", diameter_mm=0.4, mpp=0.5, abnormal=share)
    found = scene.findings
    assert len(found) == max(round(share * scene.deposit.cells), least if least <= 1 else 0)
    assert len(found) >= least
    assert {finding.kind for finding in found} <= {kind for lesion in module._LESIONS for kind in lesion}


def test_outlines_lie_around_dark_nuclei(positive: Scene) -> None:
    picture = _picture(positive)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    glass = np.median(grey[:30])
    assert len(positive.findings) >= 3
    for finding in positive.findings:
        inside = np.zeros(grey.shape, np.uint8)
        cv2.fillPoly(inside, [finding.outline_level0], 1)
        assert inside.any()
        values = grey[inside == 1]
        assert np.quantile(values, 0.05) < glass - 70
        assert np.median(values) < glass - 10


def test_neighbourhoods_are_sharp_at_their_own_depth(positive: Scene) -> None:
    def detail(z_um: float) -> float:
        return float(cv2.Laplacian(cv2.cvtColor(_picture(positive, z_um), cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())

    middle = float(np.median(positive._depth_um))
    assert detail(middle) > 1.2 * detail(middle + 3)
    assert detail(middle) > 1.2 * detail(middle - 3)
