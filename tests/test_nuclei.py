"""Nuclei from masks: both layouts, centroid and scale, and what is refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from papsmear.errors import UsageError
from papsmear.probes.classes import HERLEV
from papsmear.probes.datasets import CellSet, read_cells
from papsmear.probes.nuclei import read_nuclei, without_scale

GROUND, CYTOPLASM, NUCLEUS, UNKNOWN = (255, 0, 0), (0, 0, 128), (0, 0, 255), (128, 128, 128)


def mask(size: tuple[int, int], nucleus: tuple[int, int], radius: int = 8) -> np.ndarray:
    """A mask (H, W, 3): a cell of 30 px radius with its nucleus, a speck of nucleus elsewhere, a grey corner."""
    rgb = np.full((*size, 3), GROUND, np.uint8)
    cv2.circle(rgb, (45, 40), 30, CYTOPLASM, -1)
    cv2.circle(rgb, nucleus, radius, NUCLEUS, -1)
    rgb[2:4, 2:4] = NUCLEUS
    rgb[-4:, -4:] = UNKNOWN
    return rgb


def cells_in(folder: Path, names: list[str], sizes: list[tuple[int, int]]) -> CellSet:
    images = tuple(np.full((*size, 3), 128, np.uint8) for size in sizes)
    labels = np.arange(len(names)) % 2
    found = [sorted(folder.glob(f"{Path(name).stem}-d.*")) for name in names]
    masks = tuple(files[0] if files else None for files in found)
    return CellSet("herlev", HERLEV[:2], tuple(names), images, labels, {}, masks)


@pytest.mark.parametrize("suffix", [".bmp", ".jpg"])
def test_the_centroid_is_that_of_the_nucleus(tmp_path: Path, suffix: str) -> None:
    """Of its largest piece, in whole colours and in JPEG's blurred ones."""
    for name, at in (("a", (40, 44)), ("b", (50, 30))):
        Image.fromarray(mask((80, 90), at)).save(tmp_path / f"{name}-d{suffix}", quality=90)
    sizes = [(80, 90), (80, 90)]
    nuclei, problems = read_nuclei(cells_in(tmp_path, ["a.BMP", "b.BMP"], sizes))
    assert not problems
    assert [n.xy_px for n in nuclei if n] == [pytest.approx((40, 44), abs=0.2), pytest.approx((50, 30), abs=0.2)]


def test_a_patch_is_128_native_pixels_or_as_wide_as_the_cell(tmp_path: Path) -> None:
    names = ["a.BMP", "b.BMP"]
    for name in "ab":
        Image.fromarray(mask((80, 90), (40, 44))).save(tmp_path / f"{name}-d.bmp")
    resized = cells_in(tmp_path, names, [(80, 90), (80, 90)])
    assert without_scale(resized)
    found, _ = read_nuclei(resized)
    assert [n.patch_px for n in found if n] == [pytest.approx(60, abs=1)] * 2, "the diameter of the cell"
    Image.fromarray(mask((82, 90), (40, 44))).save(tmp_path / "b-d.bmp")
    native = cells_in(tmp_path, names, [(80, 90), (82, 90)])
    assert not without_scale(native)
    assert [n.patch_px for n in read_nuclei(native)[0] if n] == [128, 128]


def test_a_cell_whose_mask_shows_nothing_is_named(tmp_path: Path) -> None:
    Image.fromarray(mask((80, 90), (40, 44))).save(tmp_path / "a-d.bmp")
    Image.fromarray(np.full((80, 90, 3), GROUND, np.uint8)).save(tmp_path / "b-d.bmp")
    Image.fromarray(mask((80, 80), (40, 44))).save(tmp_path / "c-d.bmp")
    (tmp_path / "d-d.bmp").write_bytes(b"no picture")
    Image.fromarray(np.full((80, 90, 3), CYTOPLASM, np.uint8)).save(tmp_path / "f-d.bmp")
    cells = cells_in(tmp_path, [f"{name}.BMP" for name in "abcdef"], [(80, 90)] * 6)
    nuclei, problems = read_nuclei(cells)
    assert [n is not None for n in nuclei] == [True, False, False, False, False, False]
    assert problems == {
        "b.BMP": "its mask b-d.bmp marks no cell",
        "c.BMP": "its mask c-d.bmp is 80 x 80 px, its picture 90 x 80",
        "d.BMP": "its mask d-d.bmp cannot be read: not an image",
        "e.BMP": "no mask",
        "f.BMP": "its mask f-d.bmp shows no nucleus",
    }


def test_a_set_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Herlev: no cell has a mask that shows its nucleus \(a.BMP: no mask\)"):
        read_nuclei(cells_in(tmp_path, ["a.BMP"], [(80, 90)]))


def test_real_cells_have_their_nuclei(shared_data: Path) -> None:
    """Every twentieth cell of the copy of the real set: a dark nucleus inside the image; the scale is lost."""
    every = read_cells("herlev", shared_data / "herlev")
    cells = every.subset(range(0, len(every.labels), 20))
    images = cells.images
    nuclei, problems = read_nuclei(cells)
    assert without_scale(cells)
    assert not problems
    found = [nucleus for nucleus in nuclei if nucleus]
    assert len(found) == 46
    assert 100 < np.median([n.patch_px for n in found]) < 200
    darker = 0
    for image, nucleus in zip(images, found, strict=True):
        x, y = map(round, nucleus.xy_px)
        darker += image[y - 2 : y + 3, x - 2 : x + 3].mean() < image.mean()
    assert darker > 0.9 * 46
