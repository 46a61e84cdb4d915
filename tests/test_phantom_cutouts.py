"""Cells cut out of real sets: layouts, scale, colours, and source pictures that no two folds share."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from papsmear.errors import UsageError
from papsmear.tiling.phantom.cellsets import SET_MPP, write_cell_sets
from papsmear.tiling.phantom.cutouts import NATIVE_MPP, TYPICAL_UM, deal, find_cutouts
from papsmear.tiling.phantom.realcells import RealCells
from papsmear.tiling.phantom.sprite import HERLEV_CLASSES, SIPAKMED_CLASSES


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sets in the public archives' layouts, 5 cells a class."""
    folder = tmp_path_factory.mktemp("cells")
    write_cell_sets(folder, seed=3, per_class=5)
    return folder


@pytest.fixture(scope="module")
def native(sets: Path) -> Path:
    return sets / "herlev"


@pytest.fixture(scope="module")
def outlined(sets: Path) -> Path:
    return sets / "sipakmed"


@pytest.fixture(scope="module")
def copy(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same set as squares of 200 px in JPEG, padded with one colour: the scale is lost."""
    folder = tmp_path_factory.mktemp("copy")
    for file in native.glob("*/*"):
        picture = cv2.imread(str(file))
        assert picture is not None
        scale = 200 / max(picture.shape)
        width, height = (round(side * scale) for side in picture.shape[1::-1])
        picture = cv2.resize(picture, (width, height))
        is_mask = file.stem.endswith("-d")
        colour = (0, 0, 255) if is_mask else (140, 110, 120)
        y, x = (200 - height) // 2, (200 - width) // 2
        square = cv2.copyMakeBorder(picture, y, 200 - height - y, x, 200 - width - x, cv2.BORDER_CONSTANT, value=colour)
        target = folder / ("masks" if is_mask else "images") / file.parent.name / f"{file.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), square, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return folder


def test_both_layouts_give_the_same_cells(native: Path, copy: Path) -> None:
    found, copied = find_cutouts(native), find_cutouts(copy)
    assert [(c.kind, c.image.stem, c.source) for c in found] == [(c.kind, c.image.stem, c.source) for c in copied]
    assert len(found) == 5 * 7
    assert all(cell.image.name.startswith(f"{cell.source}-") for cell in found)
    assert {cell.mpp for cell in found} == {NATIVE_MPP}
    assert {cell.mpp for cell in copied} == {None}


def test_native_cells_keep_their_size_at_every_mpp(native: Path) -> None:
    cutouts = find_cutouts(native)
    for mpp in (0.25, 0.5):
        for cutout in cutouts[::5]:
            mask = cv2.imread(str(cutout.mask))
            assert mask is not None
            wanted_um2 = float((mask[:, :, 2] < 128).sum()) * NATIVE_MPP**2
            cell = RealCells([cutout], mpp).cell(cutout.kind, np.random.default_rng(0))
            assert cell.cytoplasm.sum() * mpp**2 == pytest.approx(wanted_um2, rel=0.2)


@pytest.mark.parametrize("form", ["copy", "outlined"])
def test_cells_without_scale_get_the_typical_size_of_their_class(form: str, request: pytest.FixtureRequest) -> None:
    cells = RealCells(find_cutouts(request.getfixturevalue(form)), 0.25)
    assert cells.kinds == (HERLEV_CLASSES if form == "copy" else SIPAKMED_CLASSES)
    for kind in cells.kinds:
        areas = [cells.cell(kind, np.random.default_rng(seed)).cytoplasm.sum() for seed in range(15)]
        diameter_um = 2 * np.sqrt(np.mean(areas) / np.pi) * 0.25
        assert diameter_um == pytest.approx(TYPICAL_UM[kind], rel=0.15)


@pytest.mark.parametrize("form", ["native", "outlined"])
def test_sprites_are_the_cell_alone(form: str, request: pytest.FixtureRequest) -> None:
    cells = RealCells(find_cutouts(request.getfixturevalue(form)), 0.25)
    for kind in cells.kinds:
        sprite = cells.cell(kind, np.random.default_rng(1))
        light = sprite.transmittance
        assert sprite.kind == kind
        assert light.dtype == np.float32
        assert light.shape == (*sprite.cytoplasm.shape, 3)
        assert light.min() > 0
        assert light.max() <= 1
        for border in (light[0], light[-1], light[:, 0], light[:, -1]):
            assert (border == 1).all()
        assert not (sprite.nucleus & ~sprite.cytoplasm).any()
        around = cv2.dilate(sprite.cytoplasm.astype(np.uint8), np.ones((9, 9))) == 0
        assert light[around].min(initial=1.0) > 0.98
        cytoplasm = sprite.cytoplasm & ~sprite.nucleus
        assert light[sprite.nucleus].mean() < light[cytoplasm].mean() - 0.05


def test_outlined_cells_are_found_by_class_and_picture(outlined: Path) -> None:
    found = find_cutouts(outlined)
    assert [cell.kind for cell in found] == [kind for kind in SIPAKMED_CLASSES for _ in range(5)]
    assert all(cell.source == f"{cell.kind}/{cell.image.stem[:3]}" for cell in found)
    assert {cell.mpp for cell in found} == {None}
    for cell in found[::4]:
        rgb, parts = cell.read()
        assert rgb.shape[:2] == parts.cell.shape
        assert rgb[parts.nucleus].mean() < rgb[parts.cell].mean() < rgb[parts.around].mean()
    for kind in SIPAKMED_CLASSES:  # they were drawn, so they show what the size of drawn ones is
        areas = [cell.read()[1].cell.sum() for cell in found if cell.kind == kind]
        assert 2 * np.sqrt(np.mean(areas) / np.pi) * SET_MPP == pytest.approx(TYPICAL_UM[kind], rel=0.2)


def test_folds_share_no_source_picture(native: Path) -> None:
    cutouts = find_cutouts(native)
    dealt = deal(cutouts, 2, seed=0)
    sources = [{cell.source for cell in fold} for fold in dealt]
    assert not sources[0] & sources[1]
    assert sum(map(len, dealt)) == len(cutouts)
    for fold in dealt:
        assert {cell.kind for cell in fold} == set(HERLEV_CLASSES)
    assert deal(cutouts, 2, seed=0) == dealt
    assert deal(cutouts, 2, seed=1) != dealt


def test_real_set_is_dealt_evenly(shared_data: Path) -> None:
    cutouts = find_cutouts(shared_data / "herlev")
    assert len(cutouts) == 917
    assert len({cell.source for cell in cutouts}) == 323
    dealt = deal(cutouts, 4, seed=0)
    sources = [cell_source for fold in dealt for cell_source in {cell.source for cell in fold}]
    assert len(sources) == len(set(sources)) == 323
    for kind in HERLEV_CLASSES:
        counts = [sum(cell.kind == kind for cell in fold) for fold in dealt]
        assert min(counts) >= 0.7 * sum(counts) / 4


def test_too_few_pictures_for_the_folds(native: Path) -> None:
    with pytest.raises(UsageError, match="source pictures, too few for --folds 8"):
        deal(find_cutouts(native), 8, seed=0)


def test_missing_class_is_named(native: Path, tmp_path: Path) -> None:
    shutil.copytree(native, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "light_dysplastic")
    with pytest.raises(UsageError, match=r"no image with a '-d' mask in .*light_dysplastic"):
        find_cutouts(tmp_path / "set")
    with pytest.raises(UsageError, match="no such folder"):
        find_cutouts(tmp_path / "nothing")


def test_a_class_without_outlines_and_a_damaged_outline_are_named(outlined: Path, tmp_path: Path) -> None:
    shutil.copytree(outlined, tmp_path / "set")
    home = tmp_path / "set" / "im_Parabasal" / "im_Parabasal" / "CROPPED"
    (home / "001_01_cyt.dat").write_text("1,2\n3,4\nx\n")
    with pytest.raises(UsageError, match=r"CROPPED/001_01.bmp: its mask 001_01_cyt.dat, line 3: 'x' is not a"):
        find_cutouts(tmp_path / "set")
    (home / "001_01_nuc.dat").unlink()
    assert len(find_cutouts(tmp_path / "set")) == 5 * 5 - 1
    for file in home.glob("*_nuc.dat"):
        file.unlink()
    with pytest.raises(UsageError, match=r"SIPaKMeD layout: no image with '_cyt.dat' and '_nuc.dat' outlines in .*im"):
        find_cutouts(tmp_path / "set")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", "cannot be decoded"),
        ("empty", "cannot be decoded"),
        ("size", "its picture"),
        ("blank", "marks no cell"),
    ],
)
def test_damaged_files_are_named(native: Path, tmp_path: Path, fault: str, message: str) -> None:
    shutil.copytree(native, tmp_path / "set")
    mask = sorted((tmp_path / "set" / "normal_columnar").glob("*-d.bmp"))[0]
    pixels = cv2.imread(str(mask))
    assert pixels is not None
    if fault == "cut":
        mask.write_bytes(mask.read_bytes()[:40])
    elif fault == "empty":
        mask.write_bytes(b"")
    elif fault == "size":
        cv2.imwrite(str(mask), pixels[:-3])
    else:
        pixels[:] = (0, 0, 255)
        cv2.imwrite(str(mask), pixels)
    with pytest.raises(UsageError, match=message) as caught:
        find_cutouts(tmp_path / "set")
    assert mask.name in str(caught.value)
    assert "\n" not in str(caught.value)
