"""The reader: rectangles against the area mean worked out by hand, µm/px, and files that cannot be read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import pytest
from numpy.typing import NDArray

from papsmear.errors import InputError
from papsmear.tiling.reader import open_slide
from papsmear.tiling.source import exact_downsamples


def weights(start: float, ratio: float, n: int, length: int) -> NDArray[np.float64]:
    """How much of each of `length` pixels lies in each of `n` wanted ones, (n, length): the definition itself."""
    left = start + ratio * np.arange(n)[:, None]
    pixel = np.arange(length)[None]
    return np.clip(np.minimum(left + ratio, pixel + 1) - np.maximum(left, pixel), 0, None) / ratio


def expected(rgb: NDArray[np.uint8], xy: tuple[float, float], size_px: int, ratio: float) -> NDArray[np.float64]:
    side = int(size_px * ratio) + 2
    white = np.pad(rgb, ((side, side), (side, side), (0, 0)), constant_values=255)
    corner = np.floor(xy).astype(int)
    part = white[corner[1] + side :, corner[0] + side :][:side, :side].astype(float)
    by = [weights(v - c, ratio, size_px, side) for v, c in zip(xy, corner, strict=True)]
    return np.asarray(np.einsum("yi,ijc,xj->yxc", by[1], part, by[0], optimize=True))


@pytest.mark.parametrize("mpp", [0.5, 0.75, 0.8123, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("xy", [(600, 900), (601, 903), (-40, -24), (2300, 1900)])
def test_a_rectangle_is_the_area_mean_of_level_0(small_slide: Any, mpp: float, xy: tuple[int, int]) -> None:
    with open_slide(small_slide.path) as reader:
        got = reader.read(xy, 100, mpp).astype(float)
    difference = np.abs(got - expected(small_slide.rgb, xy, 100, mpp / 0.5))
    assert difference.mean() < 0.5
    assert got.shape == (100, 100, 3)


def test_what_is_read_from_is_the_coarsest_level_whose_pixels_are_not_cut(small_slide: Any) -> None:
    with open_slide(small_slide.path) as reader:

        def level(mpp: float, xy: tuple[int, int] = (320, 640)) -> float:
            return reader.downsample_for(mpp, xy, 100)

        assert [level(mpp) for mpp in (0.495, 0.5, 0.999, 1.0, 1.99, 2.0, 3.0, 6.0, 6.1)] == [1, 1, 1, 2, 1, 4, 2, 4, 2]
        assert [level(1.0, (321, 640)), level(2.0, (322, 640)), level(12.1, (321, 641))] == [1, 2, 4]
        reader.check_mpp(0.49)
        with pytest.raises(InputError, match=r"0\.4 µm/px are asked for, but the slide has 0\.5.*--upsample"):
            reader.check_mpp(0.4)


def test_the_levels_are_as_many_times_smaller_as_the_scanner_made_them() -> None:
    assert exact_downsamples([(100_001, 80_003), (25_000, 20_000), (6_250, 5_000)]) == (1, 4, 16)
    assert exact_downsamples([(4443, 3567), (2222, 1784)]) == (1, 2)
    assert exact_downsamples([(1000, 1000), (400, 400)]) == (1, 2.5)


def test_a_slide_is_enlarged_where_that_is_asked_for(small_slide: Any) -> None:
    part = small_slide.rgb[900:1000, 1200:1300]
    with open_slide(small_slide.path) as reader:
        large = reader.read((1200, 900), 200, 0.25)
    assert np.abs(cv2.resize(large, (100, 100), interpolation=cv2.INTER_AREA) - part.astype(float)).mean() < 2.5


def test_an_overview_is_the_whole_slide_made_small(small_slide: Any) -> None:
    with open_slide(small_slide.path) as reader:
        rgb, level0_px_per_px = reader.overview(300)
        assert level0_px_per_px == 8
        assert (
            np.abs(rgb - cv2.resize(small_slide.rgb, (300, 250), interpolation=cv2.INTER_AREA).astype(float)).max() <= 1
        )
        everything, scale = reader.overview(100_000)
        assert scale == 1
        np.testing.assert_array_equal(everything, small_slide.rgb)


def test_mpp_comes_from_the_file_or_else_is_given(write_tiff: Callable[..., Path], tmp_path: Path) -> None:
    rgb = np.zeros((300, 300, 3), np.uint8)
    with open_slide(write_tiff(tmp_path / "with.tiff", rgb, 0.25), mpp=0.5) as reader:
        assert (round(reader.mpp, 4), reader.mpp_from) == (0.25, "file")
    bare = write_tiff(tmp_path / "bare.tiff", rgb, None)
    with open_slide(bare, mpp=0.5) as reader:
        assert (reader.mpp, reader.mpp_from) == (0.5, "given")
    with pytest.raises(InputError, match=r"bare\.tiff.*column mpp of slides\.csv.*--mpp"):
        open_slide(bare)
    with pytest.raises(InputError, match=r"not square \(0\.25 by 0\.5"):
        open_slide(write_tiff(tmp_path / "flat.tiff", rgb, (0.25, 0.5)))
    with pytest.raises(InputError, match=r"5.* µm/px lies outside 0\.1 to 2"):
        open_slide(write_tiff(tmp_path / "coarse.tiff", rgb, 5.0))


def test_what_is_no_slide_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").touch()
    (tmp_path / "text.svs").write_text("slide_id,path\n" * 100)
    (tmp_path / "folder").mkdir()
    for name, reason in {
        "empty.svs": "empty \\(0 bytes\\)",
        "text.svs": "not a whole-slide image",
        "gone.svs": "No such file",
        "folder": "holds no DICOM slide",
    }.items():
        with pytest.raises(InputError, match=f"{name}.*{reason}"):
            open_slide(tmp_path / name)


def read_all_levels(path: Path) -> None:
    with open_slide(path) as reader:
        for max_px in (100_000, 1200, 600):
            reader.overview(max_px)


def test_a_slide_cut_short_fails_when_read(small_slide: Any, tmp_path: Path) -> None:
    content = small_slide.path.read_bytes()
    for part in (0.02, 0.5, 0.9, 0.999):
        cut = tmp_path / f"cut{part}.tiff"
        cut.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(InputError, match=cut.name):
            read_all_levels(cut)


def test_dicom_is_the_same_slide_by_folder_or_by_file(shared_data: Path) -> None:
    folder = shared_data / "slides" / "CMU-1-Small-Region-dicom"
    pictures = []
    for path in (folder, *sorted(folder.iterdir())):
        with open_slide(path) as reader:
            assert (reader.size_level0, reader.mpp, reader.format) == ((2220, 2967), 0.499, "dicom")
            pictures.append(reader.read((1000, 1000), 200, 0.5))
    assert all((picture == pictures[0]).all() for picture in pictures)
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as reader:
        assert np.abs(reader.read((1000, 1000), 200, 0.5) - pictures[0].astype(float)).mean() < 6


@pytest.mark.parametrize(("mpp", "level"), [(0.25, 0), (0.4, 0), (0.5, 0), (0.77, 0)])
def test_real_jpeg2000_against_the_level_as_openslide_gives_it(shared_data: Path, mpp: float, level: int) -> None:
    path = shared_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"
    with openslide.OpenSlide(path) as slide:
        region = np.asarray(slide.read_region((1000, 700), level, (700, 700)).convert("RGB"))
        ratio = mpp / 0.25 / slide.level_downsamples[level]
    with open_slide(path, mpp=0.25) as reader:
        got = reader.read((1000, 700), 200, mpp).astype(float)
    assert np.abs(got - expected(region, (0, 0), 200, ratio)).mean() < 0.5
