"""Augmentation on uint8 with OpenCV against torchvision and Pillow with the same parameters."""

import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy.ndimage import gaussian_filter
from skimage.color import hed2rgb, hed_from_rgb, rgb2hed, rgb_from_hed
from torchvision.transforms import RandomResizedCrop

from papsmear.errors import UsageError
from papsmear.ssl import augment
from papsmear.ssl.augment import Views, draw_crop
from papsmear.ssl.stain import adjust_stains


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
    plain = Views(160, (1.0, 1.0), jitter_p=0, grey_p=0, blur_p=(0, 0))
    solarised = Views(160, (1.0, 1.0), jitter_p=0, grey_p=0, blur_p=(0, 0), solarise_p=(1, 1))
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
    views = Views(96)
    first, again, other = (views(picture, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (2, 96, 96, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert difference(first, other) > 5
    assert difference(first[0], first[1]) > 5


def test_the_recipes_probabilities(picture: NDArray[np.uint8]) -> None:
    """Of many views: a fifth are grey; solarising and the rarer blur are the second view's."""
    views = Views(24)
    made = [views(picture, np.random.default_rng(seed)) for seed in range(600)]
    grey_share = np.mean([(view[..., 0] == view[..., 2]).all() for pair in made for view in pair])
    assert 0.15 < grey_share < 0.25
    rough = np.array([[np.abs(np.diff(view.astype(int), axis=1)).mean() for view in pair] for pair in made])
    assert rough[:, 0].mean() < rough[:, 1].mean()


def plain(**changes: Any) -> Views:
    """Views (160 px, of whole pictures) without colour changes, but for what is asked for."""
    return Views(**{"crop_px": 160, "scale": (1.0, 1.0), "jitter_p": 0, "grey_p": 0, "blur_p": (0, 0), **changes})


def test_jitter_factors_are_drawn_as_the_recipe_says() -> None:
    """Of a flat grey picture, brightness is all that jitter changes: 0.6 to 1.4 times, each as likely, in 80 %."""
    flat = np.full((8, 8, 3), 100, np.uint8)
    views = plain(crop_px=8, jitter_p=0.8, solarise_p=(0, 0))
    levels = np.array([views(flat, np.random.default_rng(seed))[..., 0].mean((1, 2)) for seed in range(1500)]).ravel()
    changed = levels[np.abs(levels - 100) > 0.6]
    assert len(changed) / len(levels) == pytest.approx(0.8, abs=0.03)
    quantiles = np.quantile(changed, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, [60, 80, 100, 120, 140], atol=2)


def test_the_official_views_stay_what_they_were(picture: NDArray[np.uint8]) -> None:
    """A run that goes on after an update sees the same: choices that are off draw nothing from the generator."""
    rng, fresh = np.random.default_rng(5), np.random.default_rng(5)
    plain(solarise_p=(0, 0))(picture, rng)
    for _ in range(2):  # of each view: area and aspect until a crop fits, its place, then five yes or no
        draw_crop(fresh, 160, 120, (1.0, 1.0))
        fresh.random(5)
    assert rng.random() == fresh.random()


def test_turns_are_the_eight_symmetries_each_as_likely(picture: NDArray[np.uint8]) -> None:
    square = np.ascontiguousarray(picture[:96, :96])
    symmetries = [np.rot90(flipped, k) for flipped in (square, square[:, ::-1]) for k in range(4)]
    views = plain(crop_px=96, solarise_p=(0, 0), turns=True)
    seen = [view for seed in range(300) for view in views(square, np.random.default_rng(seed))]
    shares = [np.mean([np.array_equal(view, symmetry) for view in seen]) for symmetry in symmetries]
    assert sum(shares) == pytest.approx(1)
    np.testing.assert_allclose(shares, 1 / 8, atol=0.05)


@pytest.mark.parametrize(("factors", "shifts"), [((1.05, 0.95, 1.2), (0.05, -0.02, 0.03)), ((0.8, 1, 1), (0, 0.1, 0))])
def test_stain_jitter_is_scikit_images_where_that_cuts_nothing(
    factors: tuple[float, ...], shifts: tuple[float, ...]
) -> None:
    """Pictures that are mixtures of haematoxylin, eosin and DAB."""
    mixed = np.random.default_rng(0).uniform(0.02, 0.08, (40, 50, 3))
    stained = np.clip(255 * hed2rgb(mixed), 0, 255).round().astype(np.uint8)
    theirs = hed2rgb(rgb2hed(stained) * factors + np.array(shifts) / -np.log(1e-6))
    assert difference(adjust_stains(stained, np.array(factors), np.array(shifts)), 255 * theirs) < 1


def test_stain_jitter_is_the_papers_formula_for_any_colour(picture: NDArray[np.uint8]) -> None:
    """s' = a · s + b of stains s, with teal cells among them, whose eosin is negative."""
    teal = np.full((4, 160, 3), (90, 180, 190), np.uint8)
    colours = np.vstack([picture, teal])
    factors, shifts = np.array([1.2, 0.9, 1.1]), np.array([0.03, -0.04, 0.02])
    stains = -np.log(colours / 255) @ hed_from_rgb
    theirs = 255 * np.exp(-(stains * factors + shifts) @ rgb_from_hed)
    assert stains[-1, 0].min() < -0.05
    assert difference(adjust_stains(colours, factors, shifts), np.clip(theirs, 0, 255)) < 1
    assert difference(adjust_stains(colours, np.ones(3), np.zeros(3)), colours) < 0.01


@pytest.mark.parametrize(("turn", "saturation", "value"), [(0.05, 1, 1), (-0.1, 0.8, 1.1), (0, 1.2, 0.9), (0, 1, 1)])
def test_hsv_jitter_is_pillows(picture: NDArray[np.uint8], turn: float, saturation: float, value: float) -> None:
    hue, *others = Image.fromarray(picture).convert("HSV").split()
    changed = [hue.point(lambda h: (h + round(256 * turn)) % 256)]
    changed += [band.point(lambda x, f=f: x * f) for band, f in zip(others, (saturation, value), strict=True)]
    theirs = Image.merge("HSV", changed).convert("RGB")
    assert difference(augment.adjust_hsv(picture, turn, saturation, value), theirs) < 1


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5, 2.0])
def test_sharpness_is_torchvisions_and_pillows(picture: NDArray[np.uint8], factor: float) -> None:
    ours = augment.adjust_sharpness(picture, factor)
    assert difference(ours, ImageEnhance.Sharpness(Image.fromarray(picture)).enhance(factor)) < 1
    tensor = torch.tensor(picture).permute(2, 0, 1)
    assert difference(ours, tv.adjust_sharpness(tensor, factor).permute(1, 2, 0)) < 1
    np.testing.assert_array_equal(ours[[0, -1]], picture[[0, -1]])
    np.testing.assert_array_equal(ours[:, [0, -1]], picture[:, [0, -1]])


def test_a_share_of_the_views_is_sharpened_by_1_to_2_times() -> None:
    """A pixel 100 above its neighbours is 800 / 13 above their smooth mean; that grows by the factor."""
    spot = np.full((9, 9, 3), 50, np.uint8)
    spot[4, 4] = 150
    views = plain(crop_px=9, solarise_p=(0, 0), sharpen_p=0.5)
    grown = np.array([views(spot, np.random.default_rng(seed))[:, 4, 4, 0] for seed in range(600)]).ravel() - 150.0
    assert np.mean(grown > 0.5) == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(np.quantile(grown[grown > 0.5], [0, 0.5, 1]), [0, 400 / 13, 800 / 13], atol=4)


def test_nuclei_keep_their_size_within_the_range() -> None:
    """A disc of 40 px in a tile of 320: its area in the views says its scale; crops are as torchvision's otherwise."""
    tile = np.full((320, 320, 3), 250, np.uint8)
    cv2.circle(tile, (160, 160), 20, (20, 20, 20), -1)
    dark = int((tile[..., 0] < 128).sum())
    views = plain(crop_px=224, nucleus_scale=(0.8, 1.25), solarise_p=(0, 0))
    made = [view for seed in range(200) for view in views(tile, np.random.default_rng(seed))]
    whole = [view for view in made if (view[[0, -1]] > 128).all() and (view[:, [0, -1]] > 128).all()]
    scales = np.array([((view[..., 0] < 128).sum() / dark) ** 0.5 for view in whole])
    scales = scales[scales > 0.1]  # not those that leave the disc out
    assert len(scales) > 200
    assert 0.78 < scales.min() < 0.85
    assert 1.15 < scales.max() < 1.28


def test_nuclei_smaller_than_in_a_whole_tile_are_refused(picture: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match=r"nucleus_scale 0\.1 to 0\.2: .* nuclei at 0\.69 of their size"):
        Views(96, nucleus_scale=(0.1, 0.2))(picture, np.random.default_rng(0))
    assert Views(96, nucleus_scale=(0.1, 1.0)).area_share(picture) == (96**2 / (160 * 120), 1.0)


def test_choices_for_cytology_are_drawn_within_their_limits(picture: NDArray[np.uint8]) -> None:
    for changes in ({"stain_jitter": 0.05}, {"hsv_jitter": (0.05, 0.1, 0.1)}, {"sharpen_p": 1.0}):
        views = plain(solarise_p=(0, 0), **changes)
        square = np.ascontiguousarray(picture[:, :120])
        before = augment.resize(square, 160)
        made = [view for seed in range(20) for view in views(square, np.random.default_rng(seed))]
        unflipped = [min(difference(view, before), difference(view[:, ::-1], before)) for view in made]
        assert 0 < max(unflipped) < 25, changes
