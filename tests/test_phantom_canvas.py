"""Outlines, rasters and light of the drawn cells against plain geometry and the Beer-Lambert formula."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from papsmear import seeds
from papsmear.tiling.phantom.canvas import Canvas, Outline, polygonal, rounded, tapered, turned
from papsmear.tiling.phantom.dye import Dye
from papsmear.tiling.phantom.stain import draw_stain

FAMILIES = (polygonal, rounded, tapered)


def shoelace(outline: Outline) -> float:
    x, y = outline.astype(np.float64).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 2**32),
    area_um2=st.floats(10, 3000),
    elongation=st.floats(1, 3),
)
def test_an_outline_has_its_area_and_its_pixels_too(
    family: Callable[..., Outline], seed: int, area_um2: float, elongation: float
) -> None:
    outline = family(seeds.rng(seed), area_um2, elongation)
    assert shoelace(outline) == pytest.approx(area_um2, rel=1e-3)
    assert shoelace(turned(outline, 1.0, (3.0, -2.0))) == pytest.approx(area_um2, rel=1e-3)
    mpp = 0.25
    area = Canvas.around(outline, 1.0, mpp)
    inked = area.fill(outline)
    perimeter_um = float(np.hypot(*np.diff(outline, axis=0, append=outline[:1]).T).sum())
    assert abs(float(inked.sum()) * mpp**2 - area_um2) < 0.35 * mpp * perimeter_um
    row, column = (float((index * inked).sum() / inked.sum()) for index in np.indices(inked.shape))
    assert row == pytest.approx((area.shape[0] - 1) / 2, abs=0.6)  # its centre of mass is the canvas's centre
    assert column == pytest.approx((area.shape[1] - 1) / 2, abs=0.6)


def test_a_window_shows_the_same_pixels() -> None:
    cell, nucleus = polygonal(seeds.rng(1), 900.0), turned(rounded(seeds.rng(2), 60.0), 0.3, (4.0, 2.0))
    area = Canvas.around(cell, 1.0, 0.25)
    where, window = area.window(nucleus, 1.0)
    whole = area.fill(nucleus)
    np.testing.assert_allclose(window.fill(nucleus), whole[where], atol=0.3)  # corners are kept to 1/16 px
    assert float(window.fill(nucleus).sum()) == pytest.approx(float(whole.sum()), rel=0.01)


@pytest.mark.parametrize("grain_um", [0.5, 2.0, 8.0])
def test_noise_has_mean_0_and_is_the_same_field_at_every_mpp(grain_um: float) -> None:
    cell = rounded(seeds.rng(3), 2500.0)
    fine, coarse = (Canvas.around(cell, 1.0, mpp).noise(seeds.rng(4), grain_um) for mpp in (0.125, 0.25))
    assert abs(float(fine.mean())) < 0.25
    assert 0.5 < float(fine.std()) < 1.2
    like = fine[::2, ::2][: coarse.shape[0], : coarse.shape[1]]
    if grain_um > 1:
        assert np.corrcoef(like.ravel(), coarse[: like.shape[0], : like.shape[1]].ravel())[0, 1] > 0.8


def test_light_is_beer_lambert() -> None:
    stain = draw_stain(seeds.rng(5), "a site")
    flat = np.ones((41, 41), np.float32)
    through = Dye(0.7 * flat, 0.3 * flat, 0.25, 0.4 * flat).light(stain, 0.25)
    amounts = (0.7 - 0.3, 0.3 * 0.75, 0.3 * 0.25, 0.4)
    dyes = (stain.cyanophilic, stain.eosinophilic, stain.orangeophilic, stain.haematoxylin)
    density = sum(stain.strength * amount * np.array(dye) for amount, dye in zip(amounts, dyes, strict=True))
    np.testing.assert_allclose(through[20, 20], np.exp(-np.asarray(density)), rtol=1e-4)
    twice = Dye(1.4 * flat, 0.6 * flat, 0.25, 0.8 * flat).light(stain, 0.25)
    np.testing.assert_allclose(twice[20, 20], through[20, 20] ** 2, rtol=1e-4)  # layers multiply
