"""Colours of slides: the five numbers by hand, the limit by its distribution, and phantoms in false colours."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import f, kstest

from papsmear.mil.colour import FALSE_ALARMS, ColourCounts, Colours
from papsmear.tiling.phantom.scene import Scene


def counted(*images: np.ndarray) -> ColourCounts:
    counts = ColourCounts()
    for image in counts.counting(images):
        assert image.dtype == np.uint8
    return counts


@given(sides=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_numbers_are_those_of_the_pixels_put_together(sides: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    mixed = random.uniform(0, 0.5, (3, 3))
    images = [(random.integers(0, 170, (side, side, 3)) @ mixed).astype(np.uint8) for side in sides]
    pixels = np.concatenate([image[::4, ::4].reshape(-1, 3) for image in images]).astype(float)
    found, turned = counted(*images), counted(*images[::-1])
    glass = np.sort(pixels, axis=0)[-(-9 * len(pixels) // 10) - 1]
    assert found.light() == pytest.approx(np.log(1 + glass).tolist())
    covariance = np.cov(pixels.T, bias=True) + np.eye(3)
    for number, (one, other) in zip(found.stain()[:2], ((0, 1), (2, 1)), strict=True):
        assert number == pytest.approx(np.log(covariance[one, one] / covariance[other, other]) / 2, abs=1e-6)
    for number, (one, other) in zip(found.stain()[2:], ((0, 1), (2, 1), (0, 2)), strict=True):
        r = covariance[one, other] / np.sqrt(covariance[one, one] * covariance[other, other])
        assert number == pytest.approx(np.arctanh(min(r, 0.999)), abs=1e-6)
    assert (found.light(), found.stain()) == (turned.light(), turned.stain())


def test_a_picture_of_one_colour_has_numbers_too() -> None:
    found = counted(np.full((9, 9, 3), 243, np.uint8))
    assert found.light() == pytest.approx((np.log(244),) * 3)
    assert found.stain() == pytest.approx((0.0,) * 5, abs=1e-6)


def test_distances_of_further_slides_are_distributed_as_the_limit_says() -> None:
    """Hotelling's T² of one slide more: n (n - p) / (p (n + 1) (n - 1)) T² has the F distribution of p and n - p."""
    random, n, p = np.random.default_rng(0), 12, 5
    mixed = random.normal(size=(p, p))
    shares = []
    for _ in range(1500):
        x = (100 * random.normal(size=(n + 1, p)) @ mixed).tolist()
        colours = Colours.of([tuple(row) for row in x[:-1]])
        assert colours is not None
        t2 = colours.distance(tuple(x[-1])) ** 2
        assert colours.distance(tuple(x[-1])) == pytest.approx(
            np.sqrt((np.array(x[-1]) - np.mean(x[:-1], 0)) @ np.linalg.inv(np.cov(np.transpose(x[:-1])))
                    @ (np.array(x[-1]) - np.mean(x[:-1], 0))), rel=1e-4)  # fmt: skip
        shares.append(f.sf(t2 * n * (n - p) / (p * (n + 1) * (n - 1)), p, n - p))
    assert kstest(shares, "uniform").pvalue > 0.01
    limit2 = colours.limit**2
    assert f.sf(limit2 * n * (n - p) / (p * (n + 1) * (n - 1)), p, n - p) == pytest.approx(FALSE_ALARMS)


def test_few_slides_have_no_limit_and_a_wide_one_after_that() -> None:
    x = [tuple(row) for row in np.random.default_rng(0).normal(size=(40, 5)).tolist()]
    assert Colours.of(x[:6]) is Colours.of([]) is None
    limits = [found.limit for n in (7, 10, 20, 40) if (found := Colours.of(x[:n])) is not None]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] > 10 * limits[-1]


def test_slides_all_of_one_colour_leave_room_for_another() -> None:
    same = Colours.of([(5.4, 5.4, 5.4, 0.1, 0.1)] * 40)
    assert same is not None
    assert same.distance((5.4 + 0.02,) * 3 + (0.1, 0.1)) < same.limit
    assert same.distance((5.4 - 0.69,) * 3 + (0.1, 0.1)) > 10 * same.limit


def test_phantoms_in_false_colours_lie_apart() -> None:
    """Of three sites: half the light, a stain with less green, swapped channels and grey pictures are noticed."""
    pictures = []
    for n in range(26):
        scene = Scene(n, f"site_{n % 3}", 0.35, 0.5, 0.01 * (n % 2))
        pictures.append(np.concatenate(list(scene.strips())))
    seen = [counted(rgb) for rgb in pictures[:20]]
    light, stain = Colours.of([slide.light() for slide in seen]), Colours.of([slide.stain() for slide in seen])
    assert light is not None
    assert stain is not None
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "none": lambda rgb: rgb,
        "half": lambda rgb: rgb // 2,
        "swapped": lambda rgb: rgb[..., ::-1],
        "stain": lambda rgb: (240 * (rgb / 240) ** (1.5, 0.6, 1.2)).clip(0, 255).astype(np.uint8),
        "grey": lambda rgb: np.repeat(rgb.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2),
    }
    noticed = {}
    for name, change in changes.items():
        further = [counted(change(rgb)) for rgb in pictures[20:]]
        bright, dyed = (
            sum(colours.distance(numbers) > colours.limit for numbers in of_slides)
            for colours, of_slides in ((light, [s.light() for s in further]), (stain, [s.stain() for s in further]))
        )
        noticed[name] = (bright, dyed)
    assert noticed["none"] == (0, 0)
    assert noticed["half"][0] == noticed["swapped"][1] == noticed["stain"][1] == noticed["grey"][1] == 6
    assert noticed["half"][1] == 0
