"""Augmentation on uint8 with OpenCV against torchvision and Pillow with the same parameters."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from scipy.ndimage import gaussian_filter
from torchvision.transforms import RandomResizedCrop

from papsmear.ssl import augment
from papsmear.ssl.augment import TwoViews, draw_crop


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    """A coloured picture (120, 160, 3) as smooth as a photograph, through JPEG."""
    noise = np.random.default_rng(3).normal(size=(120, 160, 3))
    smooth = gaussian_filter(noise, (2, 2, 0)) + 2 * gaussian_filter(noise, (12, 12, 0)) * 6
    levels = np.clip(150 + 45 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file))


def difference(ours: NDArray[np.uint8], theirs: Any) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).mean())


@pytest.mark.parametrize("factor", [0.6, 0.8, 1.0, 1.2, 1.4])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (augment.adjust_brightness, tv.adjust_brightness),
        (augment.adjust_contrast, tv.adjust_contrast),
        (augment.adjust_saturation, tv.adjust_saturation),
    ],
)
def test_colour_is_torchvisions(
    picture: NDArray[np.uint8], ours: Callable[..., Any], theirs: Callable[..., Any], factor: float
) -> None:
    assert difference(ours(picture, factor), theirs(Image.fromarray(picture), factor)) < 1


@pytest.mark.parametrize("turn", [-0.1, -0.03, 0.0, 0.02, 0.1])
def test_hue_is_torchvisions(picture: NDArray[np.uint8], turn: float) -> None:
    assert difference(augment.adjust_hue(picture, turn), tv.adjust_hue(Image.fromarray(picture), turn)) < 1


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0, 2.0])
def test_blur_is_pillows(picture: NDArray[np.uint8], radius: float) -> None:
    theirs = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius))
    assert difference(augment.blur(picture, radius), theirs) < 2


@pytest.mark.parametrize("side", [48, 79, 96, 150, 224])
def test_resize_is_pillows_bicubic(picture: NDArray[np.uint8], side: int) -> None:
    square = picture[:, :120]
    theirs = Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC)
    assert difference(augment.resize(square, side), theirs) < 1


def test_grey_and_solarise_are_pillows(picture: NDArray[np.uint8]) -> None:
    assert difference(augment.grey(picture), Image.fromarray(picture).convert("L")) < 1
    plain = TwoViews(160, (1.0, 1.0), jitter_p=0, grey_p=0, blur_p=(0, 0))
    solarised = TwoViews(160, (1.0, 1.0), jitter_p=0, grey_p=0, blur_p=(0, 0), solarise_p=(1, 1))
    a, b = (views(picture, np.random.default_rng(1)) for views in (plain, solarised))
    np.testing.assert_array_equal(b[1], np.asarray(ImageOps.solarize(Image.fromarray(a[1]), 128)))


def test_crops_are_distributed_as_torchvisions() -> None:
    rng = np.random.default_rng(0)
    ours = np.array([draw_crop(rng, 320, 320, (0.14, 1.0)) for _ in range(4000)])
    torch.manual_seed(0)  # torchvision draws from it
    image = Image.new("RGB", (320, 320))
    theirs = np.array([RandomResizedCrop.get_params(image, [0.14, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    theirs = theirs[:, [1, 0, 3, 2]]
    assert (ours[:, :2] + ours[:, 2:] <= 320).all()
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=4)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=4)


def test_a_strip_that_no_crop_fits_into_is_cut_in_its_middle() -> None:
    assert draw_crop(np.random.default_rng(0), 1000, 10, (0.9, 1.0)) == (493, 0, 13, 10)


def test_views_come_as_the_generator_decides(picture: NDArray[np.uint8]) -> None:
    views = TwoViews(96)
    first, again, other = (views(picture, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (2, 96, 96, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert difference(first, other) > 5
    assert difference(first[0], first[1]) > 5


def test_the_recipes_probabilities(picture: NDArray[np.uint8]) -> None:
    """Of many views: a fifth are grey; solarising and the rarer blur are the second view's."""
    views = TwoViews(24)
    made = [views(picture, np.random.default_rng(seed)) for seed in range(600)]
    grey_share = np.mean([(view[..., 0] == view[..., 2]).all() for pair in made for view in pair])
    assert 0.15 < grey_share < 0.25
    rough = np.array([[np.abs(np.diff(view.astype(int), axis=1)).mean() for view in pair] for pair in made])
    assert rough[:, 0].mean() < rough[:, 1].mean()
