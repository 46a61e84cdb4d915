"""`papsmear data`: what it says of a set, and that it fails where something is wrong."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from papsmear.cli import main
from papsmear.probes.classes import SETS, PublicSet

FOLDERS = ("carcinoma_in_situ", "normal_columnar")


@pytest.fixture
def herlev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A set of two classes and three cells each with their masks, and a Herlev that should have just these."""
    generator = np.random.default_rng(0)
    for folder in FOLDERS:
        (tmp_path / "set" / folder).mkdir(parents=True)
        for i in range(3):
            noise = cv2.GaussianBlur(generator.normal(size=(40 + i, 50, 3)), (0, 0), 4)
            image = Image.fromarray(np.clip(128 + 900 * noise, 0, 255).astype(np.uint8))
            image.save(tmp_path / "set" / folder / f"1{i}-1-00{i}.BMP")
            mask = np.full((40 + i, 50, 3), (0, 0, 128), np.uint8)
            mask[10:20, 10:20] = (0, 0, 255)
            Image.fromarray(mask).save(tmp_path / "set" / folder / f"1{i}-1-00{i}-d.bmp")
    known = SETS["herlev"]
    classes = (known.classes[0], known.classes[4])
    monkeypatch.setitem(SETS, "herlev", PublicSet(known.title, "", "folders", classes, (3, 3), 0.201, known.picture))
    return tmp_path / "set"


def said(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    printed = capsys.readouterr()
    return printed.out.splitlines(), printed.err.splitlines()


def test_a_set_as_it_should_be(herlev: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "herlev", str(herlev)]) == 0
    out, err = said(capsys)
    assert [line.split("│")[1:-1] for line in out if "carcinoma" in line] == [
        [" carcinoma in situ ", " CIS   ", " positive ", "      3 ", "          3 "]
    ]
    assert out[-4:] == [
        "size: 50 x 40 to 50 x 42 px", "scale: 0.201 µm/px", "masks: 6 of 6", "source pictures: 3",
    ]  # fmt: skip
    assert err == ["Herlev: nothing wrong"]


def test_everything_that_is_wrong_is_named(herlev: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (herlev / folder for folder in FOLDERS)
    shutil.copy(first / "10-1-000.BMP", second / "99-1-001.BMP")
    (first / "11-1-001.BMP").write_bytes(b"nothing")
    (first / "12-1-002-d.bmp").write_bytes(b"nothing")
    Image.new("RGB", (9, 9)).save(second / "10-1-000-d.bmp")
    Image.new("RGB", (50, 41), (0, 0, 128)).save(second / "11-1-001-d.bmp")
    assert main(["data", "herlev", str(herlev)]) == 1
    assert said(capsys)[1] == [
        "wrong: carcinoma_in_situ/11-1-001.BMP: not an image",
        "wrong: 6 cells, where the public set has 6: 2 carcinoma in situ instead of 3, 4 normal columnar instead of 3",
        "wrong: carcinoma_in_situ/12-1-002.BMP: its mask 12-1-002-d.bmp cannot be read: not an image",
        "wrong: normal_columnar/10-1-000.BMP: its mask 10-1-000-d.bmp is 9 x 9 px, its picture 50 x 40",
        "wrong: normal_columnar/11-1-001.BMP: its mask 11-1-001-d.bmp shows no nucleus",
        "wrong: normal_columnar/99-1-001.BMP: has no mask",
        "wrong: normal_columnar/99-1-001.BMP: the same image as carcinoma_in_situ/10-1-000.BMP "
        "(carcinoma in situ and normal columnar)",
        "Herlev: 7 wrong",
    ]


def test_near_copies_are_told_and_are_no_fault(herlev: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in herlev.rglob("*-d.bmp"):
        file.unlink()
    folder = herlev / FOLDERS[0]
    with Image.open(folder / "10-1-000.BMP") as image:
        image.save(folder / "12-1-002.jpg", quality=70)
    (folder / "12-1-002.BMP").unlink()
    assert main(["data", "herlev", str(herlev)]) == 0
    out, err = said(capsys)
    assert "masks: none" in out
    assert err[0] == "nearly equal: carcinoma_in_situ/12-1-002.jpg: nearly carcinoma_in_situ/10-1-000.BMP"


def test_a_set_of_ones_own_and_one_that_is_not_there(
    herlev: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in herlev.rglob("*-d.bmp"):
        file.unlink()
    classes = "--classes={carcinoma in situ: positive, normal_columnar: negative}"
    assert main(["data", "mine", str(herlev), classes, "--mpp=0.5"]) == 0
    out, _ = said(capsys)
    assert "scale: 0.5 µm/px" in out
    assert any("carcinoma in situ" in line and "positive" in line for line in out)
    assert main(["data", "herlev", str(tmp_path / "nowhere")]) == 2
    assert "no such folder; the set herlev wants the folder" in said(capsys)[1][0]
    empty = tmp_path / "empty"
    shutil.copytree(herlev, empty)
    for file in empty.rglob("*.BMP"):
        file.write_bytes(b"")
    assert main(["data", "herlev", str(empty)]) == 1
    assert said(capsys)[1][-1] == "Herlev: 7 wrong"


def test_the_real_herlev_is_whole(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "herlev", str(shared_data / "herlev")]) == 0
    out, err = said(capsys)
    assert {"size: all 200 x 200 px", "masks: 917 of 917", "source pictures: 323"} <= set(out)
    assert sum(line.startswith("nearly equal") for line in err) == 4
