"""The cell sets in every layout they are found in, and what cannot be used of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from papsmear.errors import UsageError
from papsmear.probes.classes import CLASSES, HERLEV, SIPAKMED
from papsmear.probes.datasets import CellSet, masks_of, read_cells, read_rgb

SHORTS = [c.short for c in HERLEV]
ARCHIVE = ["carcinoma_in_situ", "light_dysplastic", "moderate_dysplastic", "severe_dysplastic",
           "normal_columnar", "normal_intermediate", "normal_superficiel"]  # fmt: skip
SPELT_OTHERWISE = ["Carcinoma in situ", "Mild Dysplastic", "Moderate-dysplasia", "SEVERE_DYSPLASTIC",
                   "columnar", "Normal intermediate", "normal_superficial"]  # fmt: skip
SIPAKMED_FOLDERS = [
    "im_Dyskeratotic",
    "im_Koilocytotic",
    "im_Metaplastic",
    "im_Parabasal",
    "im_Superficial-Intermediate",
]


def save(path: Path, value: int = 100, size: tuple[int, int] = (9, 7), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "I;16") else (value,) * len(mode)).save(path)


def archive(folder: Path, names: list[str] = ARCHIVE, per_class: int = 2) -> Path:
    """Herlev as its archive unpacks: image and mask side by side."""
    for label, name in enumerate(names):
        for i in range(per_class):
            save(folder / name / f"14820-{i:03}.BMP", value=10 * label)
            save(folder / name / f"14820-{i:03}-d.bmp", value=255)
    return folder


def values(cells: CellSet) -> list[int]:
    return [int(image[0, 0, 0]) for image in cells.images]


@pytest.mark.parametrize("names", [ARCHIVE, SPELT_OTHERWISE], ids=["as published", "spelt otherwise"])
def test_herlev_as_unpacked_without_its_masks(tmp_path: Path, names: list[str]) -> None:
    cells = read_cells("herlev", archive(tmp_path, names))
    assert [c.short for c in cells.classes] == SHORTS
    assert values(cells) == [10 * label for label in range(7) for _ in range(2)]
    assert cells.labels.tolist() == [label for label in range(7) for _ in range(2)]
    assert cells.images[0].shape == (7, 9, 3)


def test_herlev_with_images_and_masks_in_trees_of_their_own_and_deeper_down(tmp_path: Path) -> None:
    for label, name in enumerate(ARCHIVE):
        for i in range(3):
            save(tmp_path / "unpacked" / "images" / name / f"{i}.jpg", value=10 * label)
            save(tmp_path / "unpacked" / "masks" / name / f"{i}.jpg", value=255)
    cells = read_cells("herlev", tmp_path)
    assert cells.counts() == [3] * 7
    assert cells.paths[0] == "unpacked/images/carcinoma_in_situ/0.jpg"


def test_masks_are_found_beside_their_images_and_in_a_tree_of_their_own(tmp_path: Path) -> None:
    beside = archive(tmp_path / "a")
    masks = masks_of(read_cells("herlev", beside))
    assert masks[2] == beside / "light_dysplastic" / "14820-000-d.bmp"
    tree = tmp_path / "b"
    for name in ARCHIVE:
        for i in range(2):  # equal names in all classes
            save(tree / "images" / name / f"{i}.jpg")
            save(tree / "Masks" / name / f"{i}-D.JPG")
    cells = read_cells("herlev", tree)
    masks = masks_of(cells)
    assert masks[3] == tree / "Masks" / "light_dysplastic" / "1-D.JPG"
    masks[3].unlink()
    cells = read_cells("herlev", tree)
    assert [mask is None for mask in cells.masks].index(True) == 3
    with pytest.raises(
        UsageError, match=r"Herlev: 1 of 14 images have no mask, such as images/light_dysplastic/1\.jpg"
    ):
        masks_of(cells)


@pytest.mark.parametrize("form", ["{0}/{0}/CROPPED", "{0}/CROPPED", "{0}/cropped", "{0}", "{0}/{0}"])
def test_sipakmed_takes_the_cells_and_not_the_fields_of_view(tmp_path: Path, form: str) -> None:
    for label, name in enumerate(SIPAKMED_FOLDERS):
        for i in range(2):
            save(tmp_path / form.format(name) / f"001_0{i}.bmp", value=10 * label)
        if "cropped" in form.lower():
            save(tmp_path / name / "001.bmp", value=255)
            save(tmp_path / name / name / "001.bmp", value=255)
    cells = read_cells("sipakmed", tmp_path)
    assert [c.short for c in cells.classes] == ["D", "K", "M", "P", "SI"]
    assert values(cells) == [10 * label for label in range(5) for _ in range(2)]


def test_the_sides_are_those_of_the_study() -> None:
    assert [c.short for c in HERLEV if c.side == "positive"] == ["CIS", "LD", "MD", "SD"]
    assert {c.short: c.side for c in SIPAKMED} == {
        "D": "positive", "K": "positive", "M": "neither", "P": "negative", "SI": "negative",
    }  # fmt: skip


def test_a_damaged_image_is_left_out_and_named_with_its_reason(tmp_path: Path) -> None:
    folder = archive(tmp_path, per_class=4)
    (folder / ARCHIVE[0] / "14820-000.BMP").write_bytes(b"")
    (folder / ARCHIVE[0] / "14820-001.BMP").write_bytes(b"no image at all")
    whole = folder / ARCHIVE[1] / "14820-000.BMP"
    whole.write_bytes(whole.read_bytes()[:-40])
    cells = read_cells("herlev", folder)
    assert cells.counts() == [2, 3, 4, 4, 4, 4, 4]
    assert len(cells.images) == len(cells.paths) == len(cells.labels) == 25
    assert cells.damaged == {
        "carcinoma_in_situ/14820-000.BMP": "the file is empty",
        "carcinoma_in_situ/14820-001.BMP": "not an image",
        "light_dysplastic/14820-000.BMP": cells.damaged["light_dysplastic/14820-000.BMP"],
    }
    assert "truncated" in cells.damaged["light_dysplastic/14820-000.BMP"]


def test_grey_alpha_palette_and_16_bit_become_rgb(tmp_path: Path) -> None:
    for mode, value in (("L", 60), ("RGB", 60), ("I;16", 60 * 257)):
        save(tmp_path / "x.png", value, mode=mode)
        assert (read_rgb(tmp_path / "x.png") == 60).all(), mode
    Image.new("RGB", (9, 7), (60, 60, 60)).quantize(4).save(tmp_path / "x.png")
    assert (read_rgb(tmp_path / "x.png") == 60).all()
    Image.new("RGBA", (9, 7), (0, 0, 0, 0)).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "x.png"), np.full((7, 9, 3), 255, np.uint8))


def test_no_folder_and_no_images_and_no_cells_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such folder; the set herlev wants the folder of the unpacked Herlev"):
        read_cells("herlev", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no images of Herlev in it"):
        read_cells("herlev", tmp_path)
    with pytest.raises(UsageError, match="no images of SIPaKMeD"):
        read_cells("sipakmed", archive(tmp_path, ["carcinoma_in_situ", "light_dysplastic"]))


def test_one_class_or_one_image_of_a_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only the class 'carcinoma in situ' is in it"):
        read_cells("herlev", archive(tmp_path / "one", ARCHIVE[:1]))
    folder = archive(tmp_path / "few", per_class=2)
    (folder / ARCHIVE[2] / "14820-000.BMP").write_bytes(b"")
    with pytest.raises(UsageError, match=r"'moderate dysplastic' has 1 readable image\(s\) \(1 could not be read\)"):
        read_cells("herlev", folder)


def test_a_set_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "a")
    archive(tmp_path / "b")
    with pytest.raises(
        UsageError, match=r"several folders for the class 'carcinoma in situ' \(a/carcinoma_in_situ, b/"
    ):
        read_cells("herlev", tmp_path)


def test_no_folder_name_belongs_to_two_classes() -> None:
    import re

    for name, classes in CLASSES.items():
        folders = ARCHIVE + SPELT_OTHERWISE if name == "herlev" else SIPAKMED_FOLDERS
        for folder in folders:
            letters = re.sub("[^a-z]", "", folder.lower())
            assert sum(bool(re.fullmatch(c.folder, letters)) for c in classes) == 1, folder


def test_the_real_herlev_cells_have_the_canonical_counts(shared_data: Path) -> None:
    cells = read_cells("herlev", shared_data / "herlev")
    counts = {c.short: n for c, n in zip(cells.classes, cells.counts(), strict=True)}
    assert counts == {"CIS": 150, "LD": 182, "MD": 146, "SD": 197, "NC": 98, "NI": 70, "NS": 74}
    assert not cells.damaged
    assert all(f"{Path(path).stem}-d" == mask.stem for path, mask in zip(cells.paths, masks_of(cells), strict=True))
