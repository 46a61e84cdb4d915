"""Cells brought to the encoder's µm/px: sizes in µm stay, what is cut or padded, and what has no scale is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from papsmear.errors import UsageError
from papsmear.probes.cache import checksum, features_of
from papsmear.probes.classes import HERLEV
from papsmear.probes.datasets import CellSet
from papsmear.probes.scale import at_encoder_scale, centred, check_scale, mpp_of, rescaled
from papsmear.ssl.card import EncoderCard
from papsmear.ssl.encoder import load_encoder

CARD = EncoderCard("e", "a", 64, (0.5,) * 3, (0.5,) * 3, mpp=0.5)


def disc(side: int, radius: float) -> np.ndarray:
    """A dark disc in the middle of a grey picture."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    rgb = np.full((side, side, 3), 200, np.uint8)
    rgb[np.hypot(x, y) < radius] = 40
    return rgb


def cell_set(images: list[np.ndarray], mpp: tuple[float | None, ...]) -> CellSet:
    labels = np.arange(len(images)) % 2
    return CellSet("mine", HERLEV[:2], tuple(map(str, labels)), tuple(images), labels, {}, mpp=mpp)


def test_a_nucleus_has_its_size_in_micrometres_whatever_the_images_own_scale() -> None:
    cells = cell_set([disc(100, 25), disc(50, 12.5), disc(201, 31.1), disc(40, 10)], (0.25, 0.5, 0.201, 0.625))
    for image in at_encoder_scale(cells, CARD):
        assert image.shape == (64, 64, 3)
        dark = (image[..., 0] < 120).sum()
        assert 2 * np.sqrt(dark / np.pi) == pytest.approx(25, abs=0.7), "12.5 µm at 0.5 µm/px"
        assert set(image[0].ravel().tolist()) == {200}, "padded with the colour of the border"


def test_shrinking_is_the_mean_over_the_area_and_one_to_one_changes_nothing() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    expected = rgb.reshape(12, 2, 18, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(rescaled(rgb, 0.5), expected, atol=0.51)
    assert rescaled(rgb, 1) is rgb
    assert rescaled(rgb, 0.001).shape == (1, 1, 3)


def test_the_middle_is_kept_and_the_rest_is_the_median_of_the_border() -> None:
    rgb = np.zeros((4, 10, 3), np.uint8)
    rgb[..., 0] = np.arange(10)
    rgb[0], rgb[-1] = (7, 8, 9), (7, 8, 9)
    out = centred(rgb, 6)
    np.testing.assert_array_equal(out[1:5], rgb[:, 2:8])
    assert (out[[0, 5]] == (7, 8, 9)).all()


def test_an_encoder_that_does_not_tell_its_scale_gets_half_a_micrometre_a_pixel() -> None:
    assert mpp_of(replace(CARD, mpp=None)) == 0.5
    assert mpp_of(replace(CARD, mpp=0.25)) == 0.25


def test_an_image_without_scale_is_refused_and_named() -> None:
    with pytest.raises(
        UsageError, match=r"--resize=mpp: the µm/px of 1 of 2 images of mine are not known, such as 1; "
    ):
        check_scale(cell_set([disc(9, 2)] * 2, (0.5, None)))
    with pytest.raises(UsageError, match="of 2 of 2 images"):
        check_scale(cell_set([disc(9, 2)] * 2, ()))


def test_features_differ_and_are_kept_apart(tmp_path: Path) -> None:
    encoder = load_encoder("random:test_vit", "cpu")
    cells = cell_set([disc(40, 10), disc(60, 20)], (0.25, 0.25))
    whole = features_of(encoder, "e", cells, tmp_path)
    scaled = features_of(encoder, "e", cells, tmp_path, "mpp")
    assert not np.allclose(whole, scaled)
    np.testing.assert_array_equal(features_of(encoder, "e", cells, tmp_path), whole)
    np.testing.assert_array_equal(features_of(encoder, "e", cells, tmp_path, "mpp"), scaled)
    sums = {checksum(CARD, cells), checksum(CARD, cells, "mpp"), checksum(replace(CARD, mpp=0.25), cells, "mpp"),
            checksum(CARD, replace(cells, mpp=(0.25, 0.3)), "mpp")}  # fmt: skip
    assert len(sums) == 4
    assert checksum(CARD, cells) == checksum(CARD, replace(cells, mpp=(0.25, 0.3)))
