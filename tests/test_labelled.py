"""Cells at the canvas's µm/px: native pictures by the set's scale, scaleless copies by class, and their masks."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from papsmear.errors import UsageError
from papsmear.probes.datasets import read_cells
from papsmear.probes.labelled import labelled_cells
from papsmear.probes.sources import SetSource
from papsmear.tiling.phantom.cutouts import TYPICAL_UM

RED, DARK, BLUE, GREY = (255, 0, 0), (0, 0, 128), (0, 0, 255), (128, 128, 128)


def picture(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An elliptic cell that reaches 2 px from the border, with noise; and its mask, with a speck beside it."""
    rgb = np.random.default_rng(0).integers(195, 235, (height, width, 3)).astype(np.uint8)
    mask = np.full((height, width, 3), RED, np.uint8)
    ellipse = ((width / 2 - 0.5, height / 2 - 0.5), (width - 4, height - 4), 0)
    cv2.ellipse(rgb, ellipse, (120, 90, 140), -1)
    cv2.ellipse(mask, ellipse, DARK, -1)
    cv2.circle(mask, (width // 2, height // 2), 4, BLUE, -1)
    mask[:2, :2] = DARK
    mask[-2:] = GREY
    return rgb, mask


def archive(folder: Path, sizes: dict[str, tuple[int, int]], with_masks: bool = True) -> Path:
    """Two cells a class in the archive's layout."""
    for kind, (height, width) in sizes.items():
        (folder / kind).mkdir(parents=True)
        for number in range(2):
            rgb, mask = picture(height + number, width)
            Image.fromarray(rgb).save(folder / kind / f"148-{number}.BMP")
            if with_masks:
                Image.fromarray(mask).save(folder / kind / f"148-{number}-d.bmp")
    return folder


def copied(folder: Path) -> Path:
    """The same cells as a copy without scale: each fitted into 120 x 120 px, the rest padded, JPEG."""
    for kind, (height, width) in {"light_dysplastic": (60, 100), "normal_columnar": (90, 40)}.items():
        for tree in ("images", "masks"):
            (folder / tree / kind).mkdir(parents=True)
        for number in range(2):
            scale = 120 / max(height, width)
            size = (round(width * scale), round(height * scale))
            for tree, part, fill in zip(
                ("images", "masks"), picture(height, width), ((200, 190, 210), RED), strict=True
            ):
                square = np.full((120, 120, 3), fill, np.uint8)
                top, left = (120 - size[1]) // 2, (120 - size[0]) // 2
                resized = cv2.resize(part, size, interpolation=cv2.INTER_NEAREST)
                square[top : top + size[1], left : left + size[0]] = resized
                name = f"148-9-00{number}" + ("-d" if tree == "masks" else "")
                Image.fromarray(square).save(folder / tree / kind / f"{name}.jpg", quality=95)
    return folder


@pytest.mark.parametrize("masked", [False, True])
def test_native_pictures_come_to_the_canvas_by_the_sets_scale(tmp_path: Path, masked: bool) -> None:
    folder = archive(tmp_path, {"light_dysplastic": (100, 150), "normal_columnar": (50, 40)})
    found = labelled_cells(read_cells("herlev", folder), 0.5, masked)
    assert not found.scaled_by_class
    assert [cell.label for cell in found.cells] == [1, 1, 0, 0]
    assert [cell.image.shape for cell in found.cells] == [(40, 60, 3), (41, 60, 3), (20, 16, 3), (21, 16, 3)]
    for cell in found.cells:
        if not masked:
            assert cell.inside is None
            continue
        assert cell.inside is not None
        height, width = cell.image.shape[:2]
        assert cell.inside.sum() == pytest.approx(np.pi / 4 * (height - 1.6) * (width - 1.6), rel=0.06)
        assert not cell.inside[0, 0], "the speck is no part of the cell"
        inner, outer = cell.image[cell.inside].mean(), cell.image[~cell.inside].mean()
        assert inner < 130 < 190 < outer


def test_a_copy_without_scale_gets_the_typical_size_of_each_class(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    found = labelled_cells(read_cells("herlev", folder), 0.5, masked=True)
    assert found.scaled_by_class
    for cell in found.cells:
        kind = Path(cell.name).parent.name
        assert cell.inside is not None
        diameter_um = 0.5 * 2 * np.sqrt(cell.inside.sum() / np.pi)
        assert diameter_um == pytest.approx(TYPICAL_UM[kind], rel=0.04)
        rows, columns = np.flatnonzero(cell.inside.any(1)), np.flatnonzero(cell.inside.any(0))
        spare = np.array(cell.image.shape[:2]) - (np.ptp(rows) + 1, np.ptp(columns) + 1)
        assert (spare <= 10).all(), "the padding, 28 px of it, is cut off"


def test_metaplastic_cells_are_not_pasted_and_a_set_without_masks_is_pasted_whole(tmp_path: Path) -> None:
    archive(tmp_path, {"im_Dyskeratotic": (30, 40), "im_Metaplastic": (30, 44), "im_Parabasal": (32, 40)}, False)
    with pytest.raises(
        UsageError, match=r"--cells.sipakmed: the µm/px of 6 of 6 images of SIPaKMeD are not known, such as im_Dysk"
    ):
        labelled_cells(read_cells("sipakmed", tmp_path), 0.5, masked=True)
    found = labelled_cells(read_cells("sipakmed", SetSource(tmp_path, mpp=0.2)), 0.5, masked=True)
    assert [Path(cell.name).parent.name for cell in found.cells] == ["im_Dyskeratotic"] * 2 + ["im_Parabasal"] * 2
    assert found.cells[0].image.shape == (12, 16, 3)
    assert (found.masked, found.scaled_by_class) == (False, False)
    assert all(cell.inside is None for cell in found.cells)


def test_masks_that_lack_or_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    sizes = {"light_dysplastic": (20, 30), "normal_columnar": (24, 30)}
    equal = tmp_path / "equal"
    for file in archive(tmp_path / "bare", sizes, with_masks=False).rglob("*.BMP"):
        target = equal / file.relative_to(tmp_path / "bare")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((50, 50)).save(target)
    with pytest.raises(UsageError, match=r"4 of 4 images have no mask, such as light_dysplastic/148-0.BMP"):
        labelled_cells(read_cells("herlev", equal), 0.5, masked=False)
    assert len(labelled_cells(read_cells("herlev", SetSource(equal, mpp=0.3)), 0.5, masked=False).cells) == 4
    whole = archive(tmp_path / "whole", sizes)
    mask = whole / "normal_columnar" / "148-1-d.bmp"
    for made, message in (
        (Image.new("RGB", (9, 9), DARK), "is 9 x 9 px, its picture 30 x 25; mend it"),
        (Image.new("RGB", (30, 25), RED), "marks no cell; mend it"),
    ):
        made.save(mask)
        with pytest.raises(UsageError, match=f"normal_columnar/148-1.BMP: its mask 148-1-d.bmp {message}"):
            labelled_cells(read_cells("herlev", whole), 0.5, masked=True)
    mask.write_bytes(b"no mask")
    with pytest.raises(UsageError, match=r"its mask 148-1-d.bmp cannot be read: not an image; mend it"):
        labelled_cells(read_cells("herlev", whole), 0.5, masked=True)
    mask.unlink()
    with pytest.raises(UsageError, match=r"1 of 4 images have no mask, such as normal_columnar/148-1.BMP"):
        labelled_cells(read_cells("herlev", whole), 0.5, masked=True)
