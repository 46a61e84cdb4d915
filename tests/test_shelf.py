"""Bags kept in memory; and those that CLAM and TRIDENT write, from training to prediction as their files are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from papsmear.cli import main
from papsmear.errors import InputError, UsageError
from papsmear.mil.bags import BagCard, read_bag, read_size_level0, write_bag
from papsmear.mil.shelf import GIB, Shelf
from papsmear.tiling.cut import TileSettings

N_SLIDES, N_TILES, WIDTH = 12, 20, 8
CARD = BagCard("e", "ab" * 32, TileSettings(), 640.0)
Write = Callable[[Path, str, np.ndarray, np.ndarray], None]
SOURCE = {"name": "s", "savetodir": "features_uni_v1"}
COORDS = {
    "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20, "overlap": 0,
    "level0_width": 51200, "level0_height": 51200,
}  # fmt: skip


def save(file: Path, assets: dict[str, np.ndarray], attributes: dict[str, dict[str, Any]]) -> None:
    """As `save_hdf5` of CLAM and `save_h5` of TRIDENT: a chunk a tile, grown batch by batch."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as h5:
        for key, values in assets.items():
            first, rest = values[:16], values[16:]
            row = values.shape[1:]
            data = h5.create_dataset(key, first.shape, values.dtype, maxshape=(None, *row), chunks=(1, *row))
            data[:] = first
            data.attrs.update(attributes.get(key, {}))
            data.resize(len(values), axis=0)
            data[len(first) :] = rest


def ours(folder: Path, slide_id: str, features: np.ndarray, xy: np.ndarray) -> None:
    write_bag(folder / f"{slide_id}.h5", features, xy.astype(np.int32), CARD)


def clam(folder: Path, slide_id: str, features: np.ndarray, xy: np.ndarray) -> None:
    """h5_files and pt_files, side by side."""
    full = features.astype(np.float32)
    save(folder / "h5_files" / f"{slide_id}.h5", {"features": full, "coords": xy.astype(np.int32)}, {})
    (folder / "pt_files").mkdir(exist_ok=True)
    torch.save(torch.from_numpy(full), folder / "pt_files" / f"{slide_id}.pt")


def trident(folder: Path, slide_id: str, features: np.ndarray, xy: np.ndarray) -> None:
    """A folder of features, with where the tiles were cut in the attributes of their coordinates."""
    assets = {"features": features.astype(np.float32), "coords": xy.astype(np.int64)}
    save(folder / f"{slide_id}.h5", assets, {"features": SOURCE, "coords": SOURCE | COORDS})


def write_bags(folder: Path, write: Write) -> Path:
    random = np.random.default_rng(0)
    for i in range(N_SLIDES):
        features = random.normal(size=(N_TILES, WIDTH))
        features[:2, 3] += 5 * (i // 4 % 2 == 0)
        xy = 512 * np.stack((np.arange(N_TILES), np.full(N_TILES, i)), axis=1)
        write(folder, f"s{i}", features.astype(np.float16), xy)
    return folder


def run(features: Path, out: Path, root: Path) -> dict[str, bytes]:
    """Fit, validate, test and predict; what these leave."""
    rows = [f"s{i},s{i}.svs,{int(i // 4 % 2 == 0)},{i % 4}" for i in range(N_SLIDES)]
    out.mkdir()
    (out / "slides.csv").write_text("\n".join(["slide_id,path,label,fold", *rows]) + "\n")
    words = [
        f"-c={root / 'configs' / 'mil.yaml'}",
        f"--data.features={features}",
        f"--data.slides={out / 'slides.csv'}",
    ]
    words += [f"--trainer.default_root_dir={out / 'run'}", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    for command in ("fit", "validate", "test", "predict"):
        assert main([command, *words, "--trainer.max_epochs=2"]) == 0
    return {name: (out / "run" / name).read_bytes() for name in ("test.csv", "predictions.csv")}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, bytes]:
    """What training and test leave with bags of our own."""
    folder = tmp_path_factory.mktemp("ours")
    return run(write_bags(folder / "features", ours), folder / "out", root)


@pytest.mark.parametrize(
    ("write", "within"), [(clam, "."), (clam, "h5_files"), (trident, ".")], ids=["CLAM", "CLAM h5_files", "TRIDENT"]
)
def test_bags_of_other_programs_are_trained_and_judged_on_as_ours_are(
    write: Write, within: str, wanted: dict[str, bytes], tmp_path: Path, root: Path
) -> None:
    assert run(write_bags(tmp_path / "features", write) / within, tmp_path / "out", root) == wanted
    assert wanted["predictions.csv"].count(b"\n") == N_SLIDES + 1


def test_the_positions_of_other_programs_are_read_and_the_side_of_a_tile_where_it_is_told(tmp_path: Path) -> None:
    files = {
        clam: write_bags(tmp_path / "clam", clam) / "h5_files" / "s3.h5",
        trident: write_bags(tmp_path / "trident", trident) / "s3.h5",
        ours: write_bags(tmp_path / "ours", ours) / "s3.h5",
    }
    for file in files.values():
        bag = read_bag(file)
        np.testing.assert_array_equal(bag.xy_level0[:2], [(0, 512 * 3), (512, 512 * 3)])
        assert (bag.slide_id, bag.features.dtype, bag.features.shape) == ("s3", np.float16, (N_TILES, WIDTH))
    assert {write: read_size_level0(file) for write, file in files.items()} == {clam: None, trident: 512, ours: 640}


def test_a_folder_of_tensors_alone_is_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    write_bags(tmp_path, clam)
    with pytest.raises(UsageError, match=r"pt_files: holds \.pt files.*h5_files"):
        Shelf(tmp_path / "pt_files", 1)


def test_bags_are_read_once_as_far_as_they_fit(tmp_path: Path) -> None:
    write_bags(tmp_path, ours)
    bag_bytes = N_TILES * WIDTH * 2
    shelf = Shelf(tmp_path, 2.5 * bag_bytes / GIB)
    first = {slide_id: shelf.features(slide_id) for slide_id in ("s0", "s1", "s2")}
    for slide_id, features in first.items():
        np.testing.assert_array_equal(shelf.features(slide_id), read_bag(tmp_path / f"{slide_id}.h5").features)
        assert (shelf.features(slide_id) is features) == (slide_id != "s2")  # no room for a third


def test_no_bag_is_kept_where_none_may_be_and_a_broken_one_never_is(tmp_path: Path) -> None:
    write_bags(tmp_path, ours)
    shelf = Shelf(tmp_path, 0)
    assert shelf.features("s0") is not shelf.features("s0")
    with h5py.File(tmp_path / "s1.h5", "r+") as h5:
        h5["features"][2, 2] = np.inf
    for _ in range(2):
        with pytest.raises(InputError, match="slide s1 has features that are not finite"):
            Shelf(tmp_path, 1).features("s1")
