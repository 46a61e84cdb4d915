"""The grid of tiles: counts and places against a brute-force loop, and the picture."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from papsmear.tiling.deposit import Deposit
from papsmear.tiling.grid import GRID_RGB, OUTLINE_RGB, draw, grid, tiles_in


def disc(x: float, y: float, radius: float) -> Deposit:
    corners = np.array([[x - radius, y], [x, y - radius], [x + radius, y], [x, y + radius]])
    return Deposit("disc", (corners,), np.zeros((1, 1), bool), 1.0, (x, y, radius))


def brute_force(size: tuple[int, int], step: float, x: float, y: float, radius: float) -> list[tuple[int, int]]:
    found, row = [], 0
    while (top := math.floor(row * step + 0.5)) + step <= size[1] + 1e-6:
        column = 0
        while (left := math.floor(column * step + 0.5)) + step <= size[0] + 1e-6:
            if math.hypot(left + step / 2 - x, top + step / 2 - y) <= radius:
                found.append((left, top))
            column += 1
        row += 1
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.floats(20, 700), st.floats(-200, 3200),
    st.floats(-200, 3200), st.floats(1, 3000),
)  # fmt: skip
def test_tiles_are_those_whose_centre_lies_in_the_disc(
    size: tuple[int, int], step: float, x: float, y: float, radius: float
) -> None:
    got = tiles_in(disc(x, y, radius), grid(size, step), step)
    assert list(map(tuple, got.tolist())) == brute_force(size, step, x, y, radius)


def test_known_counts() -> None:
    assert len(grid((2220, 2967), 320 * 0.5 / 0.499)) == 6 * 9
    assert len(grid((640, 640), 640)) == 1
    assert grid((639, 640), 640).shape == (0, 2)
    np.testing.assert_array_equal(grid((1000, 500), 333.4)[:, 0], [0, 333])  # the third would end at 1000.2


@given(st.floats(20, 700))
def test_rounding_does_not_add_up_and_leaves_no_gap(step: float) -> None:
    corners = grid((20_000, math.ceil(step)), step)[:, 0]
    assert np.abs(corners - np.arange(len(corners)) * step).max() <= 0.5
    assert set(np.diff(corners)) <= {math.floor(step), math.ceil(step)}


def test_a_mask_and_the_whole_slide_pick_tiles_too() -> None:
    mask = np.zeros((10, 20), bool)
    mask[5:, 10:] = True
    tissue = Deposit("tissue", (), mask, 10.0)
    assert tiles_in(tissue, grid((200, 100), 50), 50).tolist() == [[100, 50], [150, 50]]
    everything = Deposit("all", (), np.ones((10, 20), bool), 10.0)
    assert len(tiles_in(everything, grid((200, 100), 50), 50)) == 8


def test_the_picture_shows_outline_and_grid() -> None:
    glass: NDArray[np.uint8] = np.full((1000, 3000, 3), 240, np.uint8)
    deposit = disc(8000, 5000, 3000)
    xy = tiles_in(deposit, grid((30_000, 10_000), 1000), 1000)
    picture = draw(glass, 10.0, deposit, xy, 1000)
    assert picture.shape == (683, 2048, 3)
    assert (picture == OUTLINE_RGB).all(axis=2).any()
    half = (np.array(GRID_RGB) + 240) / 2
    assert (np.abs(picture - half).max(axis=2) < 2).any()
    assert (picture[:, 1000:] == 240).all()
