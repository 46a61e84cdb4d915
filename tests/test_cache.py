"""Features are embedded once for the same images and the same weights, and anew for any others."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from papsmear.probes.cache import checksum, features_of
from papsmear.probes.classes import HERLEV
from papsmear.probes.datasets import CellSet
from papsmear.ssl.encoder import Encoder, embed_images, load_encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("random:test_vit", "cpu")


@pytest.fixture
def cells() -> CellSet:
    generator = np.random.default_rng(0)
    images = tuple(generator.integers(0, 256, (20 + i, 24, 3)).astype(np.uint8) for i in range(4))
    return CellSet("herlev", HERLEV[:2], ("a", "b", "c", "d"), images, np.array([0, 0, 1, 1]), {})


def test_a_second_call_reads_what_the_first_embedded(
    encoder: Encoder, cells: CellSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = features_of(encoder, "e", cells, tmp_path)
    np.testing.assert_array_equal(first, embed_images(encoder, cells.images))
    monkeypatch.setattr("papsmear.probes.cache.embed_images", lambda *_: pytest.fail("embedded again"))
    np.testing.assert_array_equal(features_of(encoder, "renamed", cells, tmp_path), first)


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_a_damaged_file_is_made_anew(encoder: Encoder, cells: CellSet, tmp_path: Path, damage: bytes | None) -> None:
    first = features_of(encoder, "e", cells, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-4] if damage is None else damage)
    np.testing.assert_array_equal(features_of(encoder, "e", cells, tmp_path), first)
    np.testing.assert_array_equal(np.load(file), first)


def test_the_checksum_sees_content_order_shape_and_weights_but_no_names(encoder: Encoder, cells: CellSet) -> None:
    card, same = encoder.card, checksum(encoder.card, cells)
    assert checksum(dataclasses.replace(card, name="other"), cells) == same
    assert checksum(card, dataclasses.replace(cells, paths=("x",) * 4)) == same
    pixel = cells.images[0].copy()
    pixel[0, 0, 0] ^= 1
    turned = cells.images[0].reshape(24, 20, 3)
    others = [
        checksum(dataclasses.replace(card, sha256="ab" * 32), cells),
        checksum(dataclasses.replace(card, input_px=card.input_px + 1), cells),
        *(
            checksum(card, dataclasses.replace(cells, images=images))
            for images in ((pixel, *cells.images[1:]), cells.images[::-1], (turned, *cells.images[1:]))
        ),
    ]
    assert len({same, *others}) == 6
