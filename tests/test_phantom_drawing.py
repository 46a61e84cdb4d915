"""Drawn cells: sizes and looks that tell the classes apart, the contract of a sprite, the single-cell sets."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from papsmear import seeds
from papsmear.tiling.phantom.cellsets import MASK_RGB, write_cell_sets
from papsmear.tiling.phantom.drawing import OTHER_KINDS, Stain, draw_cell, draw_other, draw_stain
from papsmear.tiling.phantom.sprite import HERLEV_CLASSES, SIPAKMED_CLASSES, Sprite

CELL_KINDS = HERLEV_CLASSES + SIPAKMED_CLASSES
STAIN = draw_stain(seeds.rng(0, "stain"), "a site")


def draw(kind: str, number: int, mpp: float = 0.25, stain: Stain = STAIN) -> Sprite:
    drawing = draw_other if kind in OTHER_KINDS else draw_cell
    return drawing(kind, mpp, stain, seeds.rng(0, kind, number))


@pytest.fixture(scope="module")
def cells() -> dict[str, list[Sprite]]:
    """Sixteen cells of each class at 0.25 µm/px."""
    return {kind: [draw(kind, number) for number in range(16)] for kind in CELL_KINDS}


def nucleus_um2(cell: Sprite) -> float:
    return float(cell.nucleus.sum()) * 0.25**2


def cell_um2(cell: Sprite) -> float:
    return float(cell.cytoplasm.sum()) * 0.25**2


def median(values: list[float]) -> float:
    return float(np.median(values))


@pytest.mark.parametrize("mpp", [0.1, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", CELL_KINDS + OTHER_KINDS)
def test_a_sprite_is_a_filter_with_a_clear_border(kind: str, mpp: float) -> None:
    sprite = draw(kind, 1, mpp)
    through = sprite.transmittance
    assert through.dtype == np.float32
    assert through.shape[2] == 3
    assert through.shape[0] % 2 == through.shape[1] % 2 == 1  # a centre pixel
    assert np.isfinite(through).all()
    assert through.min() > 0
    assert through.min() < 0.98
    assert through.max() == 1
    border = np.concatenate([through[0], through[-1], through[:, 0], through[:, -1]])
    assert (border == 1).all()
    assert sprite.cytoplasm.shape == sprite.nucleus.shape == through.shape[:2]
    assert sprite.cytoplasm.dtype == sprite.nucleus.dtype == bool
    assert not (sprite.nucleus & ~sprite.cytoplasm).any()
    assert sprite.kind == kind
    assert sprite.nucleus.any() == (kind in CELL_KINDS or kind == "folded")


@pytest.mark.parametrize("kind", CELL_KINDS + OTHER_KINDS)
def test_the_blur_has_room_inside_the_border(kind: str) -> None:
    """Setting the border to clear cuts nothing: what lies just inside is clear already."""
    for number in range(12):
        through = draw(kind, number, 0.5).transmittance
        inner = np.concatenate([through[1], through[-2], through[:, 1], through[:, -2]])
        assert inner.min() > 0.985


@pytest.mark.parametrize("kind", CELL_KINDS + OTHER_KINDS)
def test_same_seed_same_bytes_and_other_seed_other_cell(kind: str) -> None:
    first, again, other = draw(kind, 2), draw(kind, 2), draw(kind, 3)
    assert first.transmittance.tobytes() == again.transmittance.tobytes()
    assert first.nucleus.tobytes() == again.nucleus.tobytes()
    assert first.transmittance.tobytes() != other.transmittance.tobytes()


@pytest.mark.parametrize("kind", CELL_KINDS)
def test_one_seed_is_one_cell_at_every_mpp(kind: str) -> None:
    """Drawn at 1 µm/px it takes the light and covers the area that it does at 0.25 µm/px."""
    fine, coarse = draw(kind, 4, 0.25), draw(kind, 4, 1.0)
    assert coarse.cytoplasm.sum() == pytest.approx(fine.cytoplasm.sum() / 16, rel=0.12)
    assert coarse.nucleus.sum() == pytest.approx(fine.nucleus.sum() / 16, rel=0.25)
    taken_fine = (1 - fine.transmittance).sum(axis=(0, 1)) / 16
    np.testing.assert_allclose((1 - coarse.transmittance).sum(axis=(0, 1)), taken_fine, rtol=0.08)


def test_sizes_are_those_of_life(cells: dict[str, list[Sprite]]) -> None:
    diameter_um = {kind: median([2 * (cell_um2(c) / np.pi) ** 0.5 for c in drawn]) for kind, drawn in cells.items()}
    for kind, low, high in [
        ("normal_superficiel", 45, 62),
        ("normal_intermediate", 35, 55),
        ("light_dysplastic", 22, 36),
        ("im_Parabasal", 15, 25),
        ("carcinoma_in_situ", 12, 20),
    ]:
        assert low < diameter_um[kind] < high, kind
    area_um2 = {kind: median([nucleus_um2(c) for c in drawn]) for kind, drawn in cells.items()}
    assert 17 < area_um2["normal_superficiel"] < 28  # pyknotic, 5-6 µm
    assert 30 < area_um2["normal_intermediate"] < 50
    assert area_um2["light_dysplastic"] > 2.5 * area_um2["normal_intermediate"]
    assert area_um2["im_Koilocytotic"] > 2 * area_um2["normal_intermediate"]


def test_nucleus_to_cell_ratio_rises_with_the_grade(cells: dict[str, list[Sprite]]) -> None:
    """The order, and roughly the values, of the medians measured on Herlev's own masks."""
    ratio = {kind: median([nucleus_um2(c) / cell_um2(c) for c in drawn]) for kind, drawn in cells.items()}
    graded = [
        "normal_superficiel",
        "normal_intermediate",
        "light_dysplastic",
        "moderate_dysplastic",
        "severe_dysplastic",
        "carcinoma_in_situ",
    ]
    assert [*sorted(graded, key=ratio.__getitem__)] == graded
    for kind, herlev in zip(graded, (0.009, 0.028, 0.25, 0.36, 0.51, 0.60), strict=True):
        assert 0.6 < ratio[kind] / herlev < 1.4, kind
    size = [median([cell_um2(c) for c in cells[kind]]) for kind in graded]
    assert size == sorted(size, reverse=True)


def test_abnormal_nuclei_are_darker_and_coarser(cells: dict[str, list[Sprite]]) -> None:
    def darkness(kind: str) -> float:
        return median([float(-np.log(c.transmittance[c.nucleus]).mean()) for c in cells[kind]])

    def coarseness(kind: str) -> float:
        return median([float(np.log(c.transmittance[_inner(c.nucleus)][:, 0]).std()) for c in cells[kind]])

    grades = ["normal_intermediate", "light_dysplastic", "moderate_dysplastic", "severe_dysplastic"]
    assert [*sorted(grades, key=darkness)] == grades
    assert [*sorted(grades, key=coarseness)] == grades
    assert darkness("carcinoma_in_situ") > darkness("moderate_dysplastic")
    assert coarseness("normal_superficiel") < coarseness("carcinoma_in_situ")  # pyknotic: no structure left


def _inner(mask: np.ndarray) -> np.ndarray:
    return cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0


def test_a_koilocyte_has_a_clear_halo_in_a_dense_rim(cells: dict[str, list[Sprite]]) -> None:
    for cell in cells["im_Koilocytotic"]:
        away_px = cv2.distanceTransform((~cell.nucleus).astype(np.uint8), cv2.DIST_L2, 5)
        beside = cell.cytoplasm & (away_px > 3) & (away_px < 6)
        clear = float(np.quantile(cell.transmittance[beside].mean(axis=1), 0.75))
        rim = float(np.median(cell.transmittance[cell.cytoplasm & (away_px > 24)]))
        assert clear > rim + 0.05
    for cell in cells["normal_intermediate"]:  # and others have none
        away_px = cv2.distanceTransform((~cell.nucleus).astype(np.uint8), cv2.DIST_L2, 5)
        beside = cell.cytoplasm & (away_px > 4) & (away_px < 9)
        rim = np.median(cell.transmittance[cell.cytoplasm & (away_px > 24)])
        assert np.median(cell.transmittance[beside]) < rim + 0.08


def test_colours_are_papanicolaous(cells: dict[str, list[Sprite]]) -> None:
    def colour(kind: str) -> tuple[float, float, float]:
        """Median share of light that passes the cytoplasm."""
        seen = [np.median(c.transmittance[c.cytoplasm & ~c.nucleus], axis=0) for c in cells[kind]]
        red, green, blue = np.median(seen, axis=0)
        return float(red), float(green), float(blue)

    red, green, blue = colour("normal_superficiel")  # pink
    assert red > blue > green
    red, green, blue = colour("normal_intermediate")  # blue-green
    assert min(green, blue) > red
    red, green, blue = colour("im_Dyskeratotic")  # orange
    assert red > green > blue


def test_site_sets_the_look_and_slides_vary_around_it() -> None:
    def dyes(stain: Stain) -> np.ndarray:
        return np.concatenate([stain.density().ravel(), np.array(stain.glass) / 255])

    looks = {
        site: np.array([dyes(draw_stain(seeds.rng(1, n), site)) for n in range(12)]) for site in ("north", "south")
    }
    within = np.mean([look.std(axis=0).mean() for look in looks.values()])
    between = np.abs(looks["north"].mean(axis=0) - looks["south"].mean(axis=0)).mean()
    assert 0 < within < between
    assert draw_stain(seeds.rng(1, 0), "north") == draw_stain(seeds.rng(1, 0), "north")
    for look in looks.values():
        assert look.min() > 0
        assert look[:, -3:].max() <= 1


@pytest.fixture(scope="module")
def cell_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cells")
    write_cell_sets(out, seed=5, per_class=5)
    return out


def test_herlev_layout(cell_sets: Path) -> None:
    assert sorted(p.name for p in (cell_sets / "herlev").iterdir()) == sorted(HERLEV_CLASSES)
    sources: dict[str, str] = {}
    for kind in HERLEV_CLASSES:
        images = sorted((cell_sets / "herlev" / kind).glob("*.BMP"))
        assert len(images) == 5
        assert len(list((cell_sets / "herlev" / kind).iterdir())) == 10
        for path in images:
            name = re.fullmatch(r"(\d{9})-\d{9}-\d{3}", path.stem)
            assert name
            assert sources.setdefault(name[1], kind) == kind  # a source picture is of one class
            image, mask = cv2.imread(str(path)), cv2.imread(str(path.with_name(f"{path.stem}-d.bmp")))
            assert image is not None
            assert mask is not None
            assert image.shape == mask.shape
            colours = {tuple(c) for c in mask[..., ::-1].reshape(-1, 3).tolist()}
            assert colours <= set(MASK_RGB.values())
            assert {MASK_RGB["background"], MASK_RGB["nucleus"]} <= colours
            nucleus = (mask == MASK_RGB["nucleus"][::-1]).all(axis=2)
            background = (mask == MASK_RGB["background"][::-1]).all(axis=2)
            assert image[nucleus].mean() < image[background].mean() - 30
    assert 7 < len(sources) < 35  # some cells share one


def test_sipakmed_layout(cell_sets: Path) -> None:
    assert sorted(p.name for p in (cell_sets / "sipakmed").iterdir()) == sorted(SIPAKMED_CLASSES)
    for kind in SIPAKMED_CLASSES:
        folder = cell_sets / "sipakmed" / kind / kind / "CROPPED"
        images = sorted(folder.glob("*.bmp"))
        assert len(images) == 5
        assert images[0].name == "001_01.bmp"
        for path in images:
            image = cv2.imread(str(path))
            assert image is not None
            height, width = image.shape[:2]
            inside = {}
            for part in ("cyt", "nuc"):
                corners = np.loadtxt(path.with_name(f"{path.stem}_{part}.dat"), delimiter=",", ndmin=2)
                assert len(corners) >= 3
                assert (corners >= 0).all()
                assert (corners < (width, height)).all()
                ink = cv2.fillPoly(np.zeros((height, width), np.uint8), [corners.astype(np.int32)], 1)
                inside[part] = ink.astype(bool)
            assert (inside["nuc"] & ~inside["cyt"]).sum() < 0.03 * inside["nuc"].sum() + 4
            assert image[inside["nuc"]].mean() < image[~inside["cyt"]].mean() - 30


def test_cell_sets_are_the_same_bytes_for_the_same_seed(cell_sets: Path, tmp_path: Path) -> None:
    write_cell_sets(tmp_path, seed=5, per_class=5)
    first = {p.relative_to(cell_sets): p.read_bytes() for p in cell_sets.rglob("*") if p.is_file()}
    again = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert first == again
