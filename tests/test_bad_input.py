"""What `papsmear probe` makes of bad input: each thing is handled, or refused in one clear line, before work begins."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import wandb
from PIL import Image
from safetensors.torch import save_file

from papsmear.cli import main
from papsmear.errors import UsageError
from papsmear.probes.datasets import masks_of, read_cells, read_rgb
from papsmear.probes.knn import predict_knn
from papsmear.ssl.encoder import load_encoder

FOLDERS = ("carcinoma_in_situ", "normal_columnar")


def herlev(folder: Path, counts: tuple[int, ...]) -> Path:
    generator = np.random.default_rng(0)
    for label, (name, n) in enumerate(zip(FOLDERS, counts, strict=True)):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            rgb = generator.integers(0, 120, (20 + i % 3, 24, 3)) + 100 * label
            Image.fromarray(rgb.astype(np.uint8)).save(folder / name / f"{label}{i:03}-1-001.BMP")
    return folder


def run(sets: Path, out: Path, *words: str) -> int:
    return main(["probe", f"--sets.herlev={sets}", f"--out={out}", "--runs=1", "--device=cpu", *words])


@pytest.mark.parametrize(
    ("counts", "ks", "says"),
    [
        ((4, 0), "[1]", "only the class 'carcinoma in situ' is in it; a probe wants at least two classes"),
        ((4, 1), "[1]", "'normal columnar' has 1 readable image(s)"),
        ((2, 2), "[1,5]", "k = 5 is more than the 2 training cells of Herlev (4 in all); leave out the larger k"),
        ((8, 8), "[1,13]", "k = 13 is more than the 12 training cells of Herlev (16 in all)"),
    ],
    ids=["one class", "one image in a class", "fewer images than k", "k larger than the training part"],
)
def test_what_cannot_be_probed_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], counts: tuple[int, ...], ks: str, says: str
) -> None:
    folder = herlev(tmp_path / "herlev", counts)
    assert run(folder, tmp_path / "out", "--encoders=random:test_vit", f"--ks={ks}") == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_gives_nan_is_left_out_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = herlev(tmp_path / "herlev", (6, 6))
    weights = {key: value.clone() for key, value in load_encoder("random:test_vit", "cpu").network.state_dict().items()}
    weights["norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "broken.safetensors", {"architecture": "test_vit"})
    encoders = f"--encoders={{good: random:test_vit, bad: {tmp_path / 'broken.safetensors'}}}"
    assert run(folder, tmp_path / "out", encoders, "--ks=[1]") == 1
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(found["encoders"]) == ["good"]
    assert "features are not finite" in found["failed"]["bad"]
    assert "encoder bad is left out: " in capsys.readouterr().err
    assert run(folder, tmp_path / "no", f"--encoders=[{tmp_path / 'broken.safetensors'}]", "--ks=[1]") == 1
    assert "no encoder gave features: broken: " in capsys.readouterr().err
    wandb.teardown()


def test_duplicates_across_the_split_are_counted_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every cell of the first class is there twice, in the same picture: half of them have a copy in training."""
    folder = herlev(tmp_path / "herlev", (8, 8))
    for file in (folder / FOLDERS[0]).iterdir():
        file.with_stem(file.stem.replace("-001", "-002")).write_bytes(file.read_bytes())
    assert run(folder, tmp_path / "out", "--encoders=random:test_vit", "--ks=[1]") == 0
    duplicates = json.loads((tmp_path / "out" / "results.json").read_text())["sets"]["herlev"]["duplicates"]
    assert (duplicates["exact"], duplicates["near"], duplicates["other_class"]) == (8, 0, 0)
    assert duplicates["pairs"][0] == [f"carcinoma_in_situ/0000-1-00{n}.BMP" for n in (1, 2)]
    across = duplicates["test_cells_with_one_in_training"]
    assert 0 < across["ungrouped"] <= 4
    assert across["grouped"] == 0, "a picture's cells are on one side"
    error = capsys.readouterr().err
    assert "Herlev: 8 images are a copy of another, 0 pairs are nearly equal; test cells with one in " in error
    assert "Herlev: 24 cells, where the public set has 917: 16 carcinoma in situ instead of 150" in error
    assert "Duplicates: 8 images are copies of another" in (tmp_path / "out" / "report.html").read_text()
    wandb.teardown()


def test_every_depth_and_every_number_of_channels_becomes_rgb(tmp_path: Path) -> None:
    """Grey, grey with alpha, 16 bits in PNG and TIFF, three channels of 16 bits, palette, and one bit."""
    grey = np.full((5, 6), 60, np.uint8)
    files = {"grey.png": Image.fromarray(grey), "palette.png": Image.fromarray(np.dstack([grey] * 3)).quantize(4),
             "grey16.png": Image.fromarray(grey * np.uint16(257))}  # fmt: skip
    for name, image in files.items():
        image.save(tmp_path / name)
    tifffile.imwrite(tmp_path / "grey16.tif", grey * np.uint16(257))
    tifffile.imwrite(tmp_path / "rgb.tif", np.dstack([grey] * 3), photometric="rgb")
    for name in (*files, "grey16.tif", "rgb.tif"):
        assert (read_rgb(tmp_path / name) == 60).all(), name
        assert read_rgb(tmp_path / name).shape == (5, 6, 3), name
    alpha = np.dstack([grey, np.zeros_like(grey)])
    Image.fromarray(alpha, "LA").save(tmp_path / "alpha.png")
    assert (read_rgb(tmp_path / "alpha.png") == 255).all()
    Image.new("1", (6, 5), 1).save(tmp_path / "bit.png")
    assert (read_rgb(tmp_path / "bit.png") == 255).all()


def test_three_channels_of_16_bits_become_8(tmp_path: Path) -> None:
    import cv2

    bgr = np.full((5, 6, 3), (10, 60, 200), np.uint8) * np.uint16(257)
    for name in ("rgb16.png", "rgb16.tif"):
        cv2.imwrite(str(tmp_path / name), bgr)
        assert (read_rgb(tmp_path / name) == (200, 60, 10)).all(), name


def test_masks_are_asked_for_where_they_are_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Herlev: 4 of 4 images have no mask, such as carcinoma_in_situ/0000-1-001"):
        masks_of(read_cells("herlev", herlev(tmp_path / "herlev", (2, 2))))


def test_a_k_of_all_training_cells_is_a_vote_of_all() -> None:
    train, labels = np.eye(3, dtype=np.float32), np.array([0, 1, 1])
    assert predict_knn(train, labels, train, [3], 2)["plain votes"][3].tolist() == [1, 1, 1]
