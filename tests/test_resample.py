"""Means over areas against their definition, at every ratio and offset, and interpolation below a ratio of 1."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from papsmear.tiling.resample import area_mean


def weights(start: float, ratio: float, n: int, length: int) -> NDArray[np.float64]:
    """How much of each of `length` pixels lies in each of `n` wanted ones, (n, length): the definition itself."""
    left = start + ratio * np.arange(n)[:, None]
    pixel = np.arange(length)[None]
    return np.clip(np.minimum(left + ratio, pixel + 1) - np.maximum(left, pixel), 0, None) / ratio


@settings(max_examples=150)
@given(
    st.tuples(*[st.one_of(st.floats(1, 4), st.sampled_from([1.0, 1.002, 2.0, 3.0]))] * 2),
    st.tuples(*[st.one_of(st.floats(0, 3), st.integers(0, 6).map(lambda n: n / 2))] * 2),
    st.tuples(*[st.integers(1, 40)] * 2),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_it_is_the_mean_over_the_area(
    ratio: tuple[float, float], offset: tuple[float, float], size: tuple[int, int], colour: bool, seed: int
) -> None:
    shape = [int(np.ceil(o + n * r)) for o, n, r in zip(offset, size, ratio, strict=True)][::-1]
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3) if colour else shape, dtype=np.uint8)
    rows, columns = (weights(offset[a], ratio[a], size[a], shape[1 - a]) for a in (1, 0))
    want = np.einsum("yi,ij...,xj->yx...", rows, pixels.astype(float), columns)
    got = area_mean(pixels, offset, ratio, size)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 0.51 + 255 * 0.01  # half a level, and what 0.005 px a side can hold


def test_what_lies_beyond_the_edge_repeats_it() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 10
    np.testing.assert_array_equal(
        area_mean(pixels, (2, 1), (1, 1), (3, 3)), [[60, 70, 70], [100, 110, 110], [100, 110, 110]]
    )
    np.testing.assert_array_equal(area_mean(pixels, (0, 2), (2, 2), (2, 1)), [[85, 105]])


def test_pixels_that_are_wanted_as_they_are_are_not_copied() -> None:
    pixels = np.zeros((50, 60), np.uint8)
    assert np.shares_memory(area_mean(pixels, (3, 4), (1, 1), (20, 10)), pixels)


@pytest.mark.parametrize("ratio", [0.25, 0.4, 0.8])
def test_enlarging_shifts_nothing(ratio: float) -> None:
    across, down = np.meshgrid(np.arange(60), np.arange(50))
    slope = (2 * across + 3 * down).astype(np.uint8)
    got = area_mean(slope, (8, 6), (ratio, ratio), (40, 40)).astype(float)
    x, y = np.meshgrid(8 + ratio * (np.arange(40) + 0.5) - 0.5, 6 + ratio * (np.arange(40) + 0.5) - 0.5)
    assert np.abs(got - (2 * x + 3 * y)).max() < 0.6
