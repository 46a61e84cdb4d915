"""A tile as JPEG keeps it: colours there and back, scores of focus and content."""

import cv2
import numpy as np
import pytest
import simplejpeg

from papsmear.tiling.picture import YCbCr, content_score, focus_score, halved, rgb_from_channels, ycbcr_from_rgb


@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
def test_a_picture_as_jpeg_is_the_one_that_libjpeg_makes_of_rgb(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    rgb = cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    picture = ycbcr_from_rgb(rgb)
    assert picture.cb.shape == picture.cr.shape == ((size[0] + 1) // 2, (size[1] + 1) // 2)
    ours, theirs = simplejpeg.decode_jpeg(picture.jpeg(95)), simplejpeg.encode_jpeg(rgb, 95, colorsubsampling="420")
    assert simplejpeg.decode_jpeg_header(picture.jpeg(95))[:2] == size
    assert simplejpeg.decode_jpeg_header(picture.jpeg(95))[3] == "420"
    assert np.abs(ours.astype(float) - simplejpeg.decode_jpeg(theirs)).mean() < 1


@pytest.mark.parametrize("step", [(1, 1), (2, 1), (2, 2)])
def test_rgb_comes_back_from_its_channels(step: tuple[int, int]) -> None:
    across, down = np.meshgrid(np.linspace(0, 255, 61), np.linspace(0, 255, 48))
    rgb = np.stack([across, down, 255 - across], 2).astype(np.uint8)
    y, cr, cb = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb))
    even = [cv2.copyMakeBorder(c, 0, 0, 0, 61 % step[0], cv2.BORDER_REPLICATE) for c in (cb, cr)]
    size = (even[0].shape[1] // step[0], 48 // step[1])
    small = [np.asarray(cv2.resize(c, size, interpolation=cv2.INTER_AREA), np.uint8) for c in even]
    got = rgb_from_channels(np.asarray(y, np.uint8), small[0], small[1], step)
    assert got.shape == rgb.shape
    assert np.abs(got.astype(float) - rgb).mean() < 1.2


def test_halves_are_means_of_four() -> None:
    np.testing.assert_array_equal(halved(np.array([[0, 4, 9], [8, 8, 9]], np.uint8)), [[5, 9]])


def test_focus_is_brenners_measure_and_falls_with_blur() -> None:
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 256, (200, 200), dtype=np.uint8)
    wide = sharp.astype(float)
    squares = ((wide[:, 2:] - wide[:, :-2]) ** 2).sum() + ((wide[2:] - wide[:-2]) ** 2).sum()
    assert focus_score(sharp) == pytest.approx(squares / 2 / 200**2)
    scores = [focus_score(np.asarray(cv2.GaussianBlur(sharp, (0, 0), s), np.uint8)) for s in (0.5, 1, 2, 4)]
    assert scores == sorted(scores, reverse=True)
    assert focus_score(np.full((32, 32), 99, np.uint8)) == 0


def test_content_is_the_share_that_is_not_glass() -> None:
    glass = (236, 240, 238)
    rgb = np.full((100, 100, 3), glass, np.uint8)
    rgb = np.clip(rgb + np.random.default_rng(0).normal(0, 2, rgb.shape), 0, 255).astype(np.uint8)
    as_ycbcr = tuple(int(c[0, 0]) for c in ycbcr_from_rgb(np.full((1, 1, 3), glass, np.uint8)))
    assert content_score(ycbcr_from_rgb(rgb), as_ycbcr) < 0.01
    rgb[:50, :40] = (120, 90, 150)  # dark
    rgb[50:, 60:] = (240, 226, 234)  # faint pink, as light as the glass
    assert content_score(ycbcr_from_rgb(rgb), as_ycbcr) == pytest.approx(0.4, abs=0.01)
    assert content_score(YCbCr(*(np.zeros((s, s), np.uint8) for s in (10, 5, 5))), (255, 128, 128)) == 1
