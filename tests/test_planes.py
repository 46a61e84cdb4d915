"""Focal planes: which files they are, that they fit together, and that the sharpest is the one where the cells lie."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from papsmear.errors import InputError
from papsmear.tiling.cut import focus_score
from papsmear.tiling.phantom.cohort import phantom
from papsmear.tiling.phantom.roster import draw_roster
from papsmear.tiling.phantom.scene import Scene
from papsmear.tiling.planes import Planes, open_planes


@dataclass(frozen=True)
class Phantom:
    """A slide of three planes, by its row in slides.csv, and the scene that it shows."""

    path: Path
    pattern: str
    scene: Scene


SEED = 0


@pytest.fixture(scope="module")
def three_planes(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    """A phantom slide at 0.5 µm/px."""
    folder = tmp_path_factory.mktemp("cohort")
    phantom(folder, slides=1, diameter_mm=2, mpp=0.5, planes=3, cell_sets=0, seed=SEED, workers=1)
    (row,) = csv.DictReader((folder / "slides.csv").read_text().splitlines())
    (entry,) = draw_roster(slides=1, prevalence=0.2, sites=3, folds=4, seed=SEED)
    scene = Scene(entry.seed, entry.site, 2, 0.5, 0.005 if entry.label else 0.0)
    return Phantom(folder / row["path"], str(folder / row["z_planes"]), scene)


def test_a_phantoms_planes_are_found_by_its_row(three_planes: Phantom) -> None:
    with open_planes(three_planes.path, three_planes.pattern) as planes:
        assert planes.z_um == (-1, 0, 1)
        assert [reader.path.name for reader in planes.readers] == [
            three_planes.path.name.replace(".svs", end) for end in ("_z-1.svs", ".svs", "_z+1.svs")
        ]
        assert planes.middle.path == three_planes.path
        assert {reader.size_level0 for reader in planes.readers} == {three_planes.scene.size_level0}


def test_best_is_the_plane_in_which_the_cells_lie(three_planes: Phantom) -> None:
    side = 320
    width, height = three_planes.scene.size_level0
    scores, share = [], []  # of the cells of a tile, nearest to each plane
    with open_planes(three_planes.path, three_planes.pattern) as planes:
        for y in range(0, height - side, side):
            for x in range(0, width - side, side):
                cells_um = three_planes.scene.depths_um((x, y), side)
                if len(cells_um) >= 8:
                    nearest = np.abs(cells_um[:, None] - planes.z_um).argmin(axis=1)
                    share.append(np.bincount(nearest, minlength=3) / len(cells_um))
                    scores.append([focus_score(reader.read((x, y), side, 0.5)) for reader in planes.readers])
        best = planes.best(np.array(scores).T)
    wanted, clear = np.argmax(share, axis=1), np.max(share, axis=1) >= 0.75
    assert (np.bincount(wanted[clear], minlength=3) >= 10).sum() >= 2  # not all in one plane, which anybody could pick
    assert (best == wanted)[clear].mean() >= 0.98
    assert (best == wanted).mean() >= 0.85


def planes_at(*z_um: float) -> Planes:
    return Planes(z_um, ("a reader",) * len(z_um))


def test_of_equally_sharp_planes_the_one_nearest_to_0_is_the_best() -> None:
    focus = np.array([[5.0, 0, 3, 1, 2], [5, 0, 1, 4, 2], [5, 0, 3, 4, 1]])
    assert planes_at(-1, 0, 1).best(focus).tolist() == [1, 1, 0, 1, 1]
    assert planes_at(-2, -1, 0).best(focus).tolist() == [2, 2, 2, 2, 1]
    assert planes_at(3).best(focus[:1]).tolist() == [0] * 5
    assert planes_at(-1, 0, 1).best(np.zeros((3, 0))).tolist() == []


@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_no_plane_is_sharper_than_the_best(n_planes: int, n_tiles: int, seed: int) -> None:
    focus = np.random.default_rng(seed).integers(0, 4, (n_planes, n_tiles)).astype(float)
    best = planes_at(*range(n_planes)).best(focus)
    np.testing.assert_array_equal(focus[best, np.arange(n_tiles)], focus.max(axis=0))


@pytest.fixture
def files(tmp_path: Path, write_tiff: Callable[..., Path]) -> Callable[..., list[Path]]:
    """Writes small slides, each of another grey, under these names."""

    def write(*names: str, size: int = 64, mpp: float = 0.5) -> list[Path]:
        for number, name in enumerate(names):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write_tiff(tmp_path / name, np.full((size, size, 3), 10 * number, np.uint8), mpp)
        return [tmp_path / name for name in names]

    return write


def found(path: Path, folder: Path, pattern: str) -> dict[float, str]:
    with open_planes(path, str(folder / pattern)) as planes:
        names = [reader.path.resolve().relative_to(folder).as_posix() for reader in planes.readers]
        return dict(zip(planes.z_um, names, strict=True))


@pytest.mark.parametrize(
    ("pattern", "names", "planes"),
    [
        ("a_z{z:+d}.tif", ["a.tif", "a_z-1.tif", "a_z+1.tif"], {-1: "a_z-1.tif", 0: "a.tif", 1: "a_z+1.tif"}),
        (
            "a_z{z}.tif",
            ["a_z0.tif", "a_z-10.tif", "a_z+2.5.tif"],
            {-10: "a_z-10.tif", 0: "a_z0.tif", 2.5: "a_z+2.5.tif"},
        ),
        ("a{z:.1f}um.tif", ["a0.0um.tif", "a1.5um.tif", "a3um.tif"], {0: "a0.0um.tif", 1.5: "a1.5um.tif"}),
        ("a{z:+d}.tif", ["a.tif", "a+1.tif", "a10.tif", "a+1x.tif", "ba+3.tif"], {0: "a.tif", 1: "a+1.tif"}),
        ("a{z:03d}.tif", ["a002.tif", "a-01.tif", "a1.tif"], {-1: "a-01.tif", 2: "a002.tif"}),
        ("z{z}/a[1].tif", ["z0/a[1].tif", "z1/a[1].tif", "z2/a1.tif"], {0: "z0/a[1].tif", 1: "z1/a[1].tif"}),
        ("./x/../x/a_{z}.tif", ["x/a_5.tif", "x/a_7.tif"], {5: "x/a_5.tif", 7: "x/a_7.tif"}),
    ],
)
def test_files_by_pattern(
    tmp_path: Path, files: Callable[..., list[Path]], pattern: str, names: list[str], planes: dict[float, str]
) -> None:
    path, *_ = files(*names)
    assert found(path, tmp_path, pattern) == planes


def test_the_pixels_are_those_of_the_planes_file(files: Callable[..., list[Path]]) -> None:
    path, *_ = files("a.tif", "a-1.tif", "a+1.tif")
    with open_planes(path, str(path.parent / "a{z:+d}.tif")) as planes:
        assert [int(reader.read((0, 0), 9, 0.5).max()) for reader in planes.readers] == [10, 0, 20]
        assert [int(plane.middle.read((0, 0), 9, 0.5).max()) for plane in map(planes.select, (-1, 0.0, 0.995))] == [
            10,
            0,
            20,
        ]


def test_minus_0_is_0(files: Callable[..., list[Path]]) -> None:
    path, *_ = files("a_-0.tif")
    assert [str(z_um) for z_um in found(path, path.parent, "a_{z}.tif")] == ["0.0"]


def n_open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_all_planes_are_closed(three_planes: Phantom) -> None:
    before = n_open_files()
    with open_planes(three_planes.path, three_planes.pattern, engine="jpeg"):
        assert n_open_files() >= before + 3
    assert n_open_files() == before


def test_planes_are_selected(files: Callable[..., list[Path]]) -> None:
    path, *_ = files("a.tif", "a-1.5.tif", "a+1.5.tif")
    with open_planes(path, str(path.parent / "a{z:+.1f}.tif")) as planes:
        assert planes.select("all") is planes.select("best") is planes
        assert planes.select(-1.505).z_um == (-1.5,)
        with pytest.raises(InputError, match=r"a\.tif: no focal plane at z 1 µm; there is -1\.5, 0, 1\.5; "):
            planes.select(1)


def test_a_slide_scanned_once_has_its_plane_at_0(small_slide: Any) -> None:
    for pattern in (None, ""):
        with open_planes(small_slide.path, pattern) as planes:
            assert planes.z_um == (0,)
            assert planes.select(0) == planes
            with pytest.raises(InputError, match="there is 0; "):
                planes.select(1)


@pytest.mark.parametrize(
    ("pattern", "names", "reason"),
    [
        ("a_z.tif", ["a.tif"], r"needs \{z\} once"),
        ("a_{z}{z}.tif", ["a.tif"], r"needs \{z\} once"),
        ("a_{x}.tif", ["a.tif"], r"needs \{z\} once"),
        ("a_{z}.tif", ["a.tif"], "no file matches .*a_"),
        ("a_{z:nonsense}.tif", ["a.tif", "a_1.tif"], "no file matches .*nonsense"),
        ("a_{z}.tif", ["a.tif", "a_1.tif", "a_1.0.tif"], r"z 1 µm, a_1\.0\.tif and a_1\.tif"),
        ("a_{z}.tif", ["a.tif", "a_0.tif", "a_1.tif"], r"z 0 µm, this one and a_0\.tif"),
    ],
)
def test_patterns_that_cannot_be(files: Callable[..., list[Path]], pattern: str, names: list[str], reason: str) -> None:
    path, *_ = files(*names)
    with pytest.raises(InputError, match=rf"^.*a\.tif: .*{reason}[^\n]*$"):
        found(path, path.parent, pattern)


@pytest.mark.parametrize(
    ("how", "reason"), [({"size": 68}, r"sizes are \(\(68, 68\)"), ({"mpp": 0.25}, "µm/px are 0.25")]
)
def test_planes_of_another_scan_are_named_and_all_closed(
    files: Callable[..., list[Path]], how: dict[str, Any], reason: str
) -> None:
    files("a_2.tif", **how)
    path, *_ = files("a.tif", "a_1.tif")
    before = n_open_files()
    with pytest.raises(InputError, match=rf"a_2\.tif: not a focal plane of the same scan as a\.tif: .*{reason}"):
        found(path, path.parent, "a_{z}.tif")
    assert n_open_files() == before


def test_a_plane_that_cannot_be_read_is_named(files: Callable[..., list[Path]], tmp_path: Path) -> None:
    path, *_ = files("a.tif", "a_1.tif")
    (tmp_path / "a_2.tif").touch()
    with pytest.raises(InputError, match=r"a_2\.tif: the slide file is empty"):
        found(path, path.parent, "a_{z}.tif")
