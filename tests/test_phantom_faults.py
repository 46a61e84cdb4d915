"""Faults on phantom overviews: each does what it says, and the truth goes with the picture."""

import dataclasses

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from papsmear import seeds
from papsmear.tiling.phantom import faults
from papsmear.tiling.phantom.faults import FAULTS, variant
from papsmear.tiling.phantom.overview import UM_PER_PX, Overview, overview_of_scene
from papsmear.tiling.phantom.scene import Scene


@pytest.fixture(scope="module")
def clean() -> Overview:
    """A deposit of 5 mm without a fault."""
    return overview_of_scene(3, "a site", 5.0)


def inside(it: Overview) -> NDArray[np.bool_]:
    return cv2.erode(it.truth.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0


def test_a_clean_overview_is_the_scene_seen_from_afar(clean: Overview) -> None:
    scene = Scene(3, "a site", 5.0, 4.0, 0.0)
    fine = np.concatenate(list(scene.strips()))
    small = fine.reshape(fine.shape[0] // 4, 4, fine.shape[1] // 4, 4, 3).mean((1, 3))
    far, near = (
        cv2.resize(rgb.astype(np.float32), (45, 45), interpolation=cv2.INTER_AREA) for rgb in (clean.rgb(), small)
    )
    assert np.abs(far - near).mean() < 0.7  # JPEG
    deposit = scene.deposit
    rows, columns = np.mgrid[: clean.truth.shape[0], : clean.truth.shape[1]]
    cells = [
        np.floor((((at + 0.5) * 4 - centre) / deposit.diameter_level0 + 0.5) * 512).astype(int)
        for at, centre in ((rows, deposit.centre_level0[1]), (columns, deposit.centre_level0[0]))
    ]
    on_map = np.logical_and.reduce([(cell >= 0) & (cell < 512) for cell in cells])
    truth = on_map & (deposit.density[tuple(np.clip(cell, 0, 511) for cell in cells)] > 0)
    assert (truth != clean.truth).sum() < 0.001 * truth.sum()  # a shift by a pixel makes ten times more
    assert clean.diameter_px == pytest.approx(5000 / UM_PER_PX)


@pytest.mark.parametrize("name", FAULTS)
def test_the_same_numbers_give_the_same_fault(clean: Overview, name: str) -> None:
    before = dataclasses.replace(clean, cells=clean.cells.copy(), glass=clean.glass.copy())
    once, again, other = (FAULTS[name](clean, seeds.rng(seed, name)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once.rgb(), again.rgb())
    assert once.rgb().shape != other.rgb().shape or (once.rgb() != other.rgb()).any()
    np.testing.assert_array_equal(before.cells, clean.cells)  # a base serves many variants
    np.testing.assert_array_equal(before.glass, clean.glass)
    assert once.rgb().shape[:2] == once.truth.shape == once.scanned.shape
    assert once.truth.any()


def test_faint_sparse_and_crowded_change_the_cells_and_not_the_glass(clean: Overview) -> None:
    beside = ~(cv2.dilate(clean.truth.astype(np.uint8), np.ones((41, 41), np.uint8)) > 0)
    for number in range(5):
        density = {
            name: FAULTS[name](clean, seeds.rng(number, name)).cells.max(axis=2)
            for name in ("faint", "sparse", "crowded")
        }
        plain = clean.cells.max(axis=2)
        assert 0.2 < density["faint"][inside(clean)].sum() / plain[inside(clean)].sum() < 0.5
        assert 0.1 < density["sparse"][inside(clean)].sum() / plain[inside(clean)].sum() < 0.7
        assert density["crowded"][inside(clean)].sum() > 1.5 * plain[inside(clean)].sum()
        for changed in density.values():
            assert np.abs(changed[beside]).mean() < 0.02


def test_a_deposit_is_cut_off_by_at_most_35_percent(clean: Overview) -> None:
    lost = []
    for number in range(12):
        it = faults.cut_off(clean, seeds.rng(number, "cut"))
        assert any(side.any() for side in (it.truth[0], it.truth[-1], it.truth[:, 0], it.truth[:, -1]))
        spans = [np.ptp(np.flatnonzero(it.truth.any(axis))) + 1 for axis in (0, 1)]
        whole = [np.ptp(np.flatnonzero(clean.truth.any(axis))) + 1 for axis in (0, 1)]
        lost.append((sum(whole) - sum(spans)) / clean.diameter_px)
    assert min(lost) > 0.03
    assert 0.25 < max(lost) < 0.37


def test_a_wider_slide_has_the_same_deposit(clean: Overview) -> None:
    it = faults.wide(clean, seeds.rng(0, "wide"))
    assert it.truth.sum() == clean.truth.sum()
    assert it.truth.size > 1.5 * clean.truth.size
    before, after = clean.rgb(), it.rgb()
    assert np.abs(after[it.truth].mean(0) - before[clean.truth].mean(0)).max() < 1
    glass = np.median(before[~clean.truth], axis=0)
    assert np.abs(np.median(after[~it.truth], axis=0) - glass).max() <= 3


def test_marks_darken_and_bubbles_hide(clean: Overview) -> None:
    plain = clean.rgb().astype(float)
    darker = {name: plain - FAULTS[name](clean, seeds.rng(5, name)).rgb() for name in ("pen", "dust", "cover_slip")}
    assert 0.005 < (darker["pen"].max(axis=2) > 60).mean() < 0.8
    assert 0.0005 < (darker["dust"].max(axis=2) > 30).mean() < 0.2
    assert (darker["cover_slip"].max(axis=2) > 30).mean() > 0.002
    bubbled = faults.bubbles(clean, seeds.rng(5, "bubbles"))
    assert bubbled.cells.sum() < clean.cells.sum()
    assert bubbled.glass.sum() > clean.glass.sum()


def test_what_is_not_scanned_is_white(clean: Overview) -> None:
    it = faults.unscanned(clean, seeds.rng(1, "unscanned"))
    assert (it.rgb()[~it.scanned] == 255).all()
    assert 0.02 < (~it.scanned).mean() < 0.5
    assert (it.scanned & it.truth).sum() > 0.85 * it.truth.sum()


def test_variants_show_every_fault_alone_and_among_others(clean: Overview) -> None:
    small = dataclasses.replace(
        clean, **{name: getattr(clean, name)[::4, ::4] for name in ("cells", "glass", "truth", "scanned")},
        diameter_px=clean.diameter_px / 4,
    )  # fmt: skip
    shown = [variant(small, number)[1] for number in range(66)]
    assert {names[0] for names in shown if len(names) == 1} == set(FAULTS)
    assert {name for names in shown if len(names) > 1 for name in names} == set(FAULTS)
    assert {len(names) for names in shown} == {1, 2, 3, 4}
    assert shown == [variant(small, number)[1] for number in range(66)]
