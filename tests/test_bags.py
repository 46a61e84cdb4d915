"""Bags: ours and those of CLAM and TRIDENT; broken ones are named."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from papsmear.errors import InputError, UsageError
from papsmear.mil.bags import (
    BagCard,
    bag_shape,
    read_bag,
    read_card,
    read_encoder_card,
    read_features,
    write_bag,
    write_encoder_card,
)
from papsmear.ssl.card import EncoderCard
from papsmear.tiling.cut import TileSettings

CARD = BagCard("random:test_vit", "ab" * 32, TileSettings(area="all", quality=75), 640.5)
FEATURES = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float16)
COORDS = np.arange(10, dtype=np.int32).reshape(5, 2)


def foreign(file: Path, **datasets: np.ndarray) -> Path:
    with h5py.File(file, "w") as h5:
        for name, values in datasets.items():
            h5[name] = values
    return file


def test_a_bag_comes_back_as_written(tmp_path: Path) -> None:
    file = tmp_path / "s1.h5"
    write_bag(file, FEATURES, COORDS, CARD, slide_json_sha256="x")
    bag = read_bag(file)
    assert (bag.slide_id, bag_shape(file), read_card(file)) == ("s1", (5, 4), CARD)
    np.testing.assert_array_equal(bag.features, FEATURES)
    np.testing.assert_array_equal(bag.xy_level0, COORDS)
    with h5py.File(file) as h5:  # what CLAM and TRIDENT look for
        assert (h5["features"].dtype, h5["coords"].dtype) == (np.float16, np.int32)


@pytest.mark.parametrize("lead", [(), (1,)], ids=["CLAM", "TRIDENT"])
def test_bags_of_other_programs_are_read(tmp_path: Path, lead: tuple[int, ...]) -> None:
    values = FEATURES.astype(np.float32).reshape(*lead, 5, 4)
    file = foreign(tmp_path / "s1.h5", features=values, coords=COORDS.astype(np.int64).reshape(*lead, 5, 2))
    bag = read_bag(file)
    np.testing.assert_array_equal(bag.features, FEATURES)
    np.testing.assert_array_equal(bag.xy_level0, COORDS)
    assert bag_shape(file) == (5, 4)
    assert read_card(file) is None
    assert read_encoder_card(tmp_path) is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "chunks", "how"),
    [
        ((600, 24), None, {}),
        ((600, 24), (1, 24), {}),  # CLAM
        ((1, 600, 24), (1, 1, 24), {}),
        ((1, 600, 24), (1, 600, 24), {}),
        ((600, 24), (1, 24), {"compression": "gzip"}),
        ((600, 24), (1, 24), {"shuffle": True}),
        ((600, 24), (1, 12), {}),
        ((600, 24), (2, 24), {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("userblock", [0, 512])
def test_bags_are_read_however_they_are_stored(
    tmp_path: Path,
    dtype: type,
    shape: tuple[int, ...],
    chunks: tuple[int, ...] | None,
    how: dict[str, Any],
    userblock: int,
) -> None:
    file = tmp_path / "s1.h5"
    wanted = np.random.default_rng(1).normal(size=(600, 24)).astype(np.float16)
    with h5py.File(file, "w", userblock_size=userblock) as h5:
        data = h5.create_dataset("features", shape, dtype, chunks=chunks, maxshape=chunks and shape, **how)
        h5["coords"] = np.zeros((600, 2), np.int32)
        for start in (400, 0, 200):  # so that the chunks do not lie in the order of the tiles
            data[..., start : start + 200, :] = wanted[start : start + 200]
    np.testing.assert_array_equal(read_features(file), wanted)


def test_tiles_that_were_never_written_are_zeros_as_hdf5_reads_them(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s1.h5", "w") as h5:
        h5.create_dataset("features", (5, 4), np.float32, chunks=(1, 4))[2:] = FEATURES[2:]
        h5["coords"] = COORDS
    features = read_features(tmp_path / "s1.h5")
    np.testing.assert_array_equal(features, np.concatenate((np.zeros((2, 4), np.float16), FEATURES[2:])))


NAN = np.full((2, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("datasets", "said"),
    [
        ({"features": np.zeros((0, 4), np.float16), "coords": np.zeros((0, 2), np.int32)}, "slide s1 has an empty bag"),
        ({"features": NAN, "coords": np.zeros((2, 2))}, "slide s1 has features that are not finite"),
        ({"features": np.full((2, 3), 1e6), "coords": np.zeros((2, 2))}, "slide s1 has features beyond float16"),
        ({"features": FEATURES, "coords": COORDS[:3]}, "5 features but 3 coords"),
        ({"features": FEATURES}, "5 features but none coords"),
        ({"feats": FEATURES}, "holds feats, not the dataset `features`"),
        ({"features": np.zeros(4), "coords": COORDS}, "not \\(tiles, width\\)"),
    ],
)
def test_broken_bags_name_the_slide_and_the_fault(tmp_path: Path, datasets: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_bag(foreign(tmp_path / "s1.h5", **datasets))


def test_an_empty_bag_is_found_before_its_features_are_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="slide s1 has an empty bag"):
        bag_shape(foreign(tmp_path / "s1.h5", features=np.zeros((0, 4))))


def test_a_bag_cut_short_and_a_missing_one(tmp_path: Path) -> None:
    file = tmp_path / "s1.h5"
    write_bag(file, FEATURES, COORDS, CARD)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"s1\.h5: not a whole HDF5 file"):
        read_bag(file)
    with pytest.raises(UsageError, match=r"s2\.h5: there is no such bag"):
        read_bag(tmp_path / "s2.h5")


def test_the_encoder_card_comes_back_and_a_broken_one_is_named(tmp_path: Path) -> None:
    card = EncoderCard("e", "test_vit", 160, (0.5,) * 3, (0.5,) * 3, 0.5, ("s1", "s2"), 0, "ab")
    write_encoder_card(tmp_path, card)
    assert read_encoder_card(tmp_path) == card
    (tmp_path / "encoder.json").write_text("{")
    with pytest.raises(InputError, match=r"encoder.json: not the card"):
        read_encoder_card(tmp_path)
