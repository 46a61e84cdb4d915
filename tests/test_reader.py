"""The reader: rectangles against the area mean worked out by hand, µm/px, and files that cannot be read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from papsmear.errors import InputError
from papsmear.tiling.reader import area_mean, open_slide


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


@settings(max_examples=30, deadline=None)
@given(
    st.floats(1, 4), st.floats(0, 3), st.floats(0, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1)
)
def test_area_mean_is_the_mean_over_the_area(
    ratio: float, x: float, y: float, width: int, height: int, seed: int
) -> None:
    shape = (int(np.ceil(y + height * ratio)), int(np.ceil(x + width * ratio)), 3)
    rgb = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    rows, columns = weights(y, ratio, height, shape[0]), weights(x, ratio, width, shape[1])
    want = np.einsum("yi,ijc,xj->yxc", rows, rgb.astype(float), columns)
    assert np.abs(area_mean(rgb, [x, y], ratio, (width, height)) - want).max() <= 0.51 + 255 * 0.01


@pytest.mark.parametrize("mpp", [0.5, 0.75, 0.8123, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("xy", [(600, 900), (601, 903), (-40, -24), (2300, 1900)])
def test_a_rectangle_is_the_area_mean_of_level_0(small_slide: Any, mpp: float, xy: tuple[int, int]) -> None:
    with open_slide(small_slide.path) as reader:
        got = reader.read(xy, 100, mpp).astype(float)
    difference = np.abs(got - expected(small_slide.rgb, xy, 100, mpp / 0.5))
    # Where the rectangle's pixels cut pixels of a coarser level, the parts of those are not known any finer.
    cuts = mpp >= 1 and (mpp == 1.5 or any(v % (mpp / 0.5) for v in xy))
    assert difference.mean() < (2.5 if cuts else 0.5)
    assert got.shape == (100, 100, 3)


def test_the_level_read_is_the_next_finer_one(small_slide: Any) -> None:
    with open_slide(small_slide.path) as reader:
        assert [reader.level_for(mpp) for mpp in (0.495, 0.5, 0.999, 1.0, 1.99, 2.0, 8.0)] == [0, 0, 0, 1, 1, 2, 2]
        with pytest.raises(InputError, match=r"0\.4 µm/px are asked for, but the slide has 0\.5"):
            reader.read((0, 0), 10, 0.4)


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


@pytest.mark.parametrize(("mpp", "level"), [(0.25, 0), (0.4, 0), (0.5, 0), (0.77, 1)])
def test_real_jpeg2000_against_the_level_as_openslide_gives_it(shared_data: Path, mpp: float, level: int) -> None:
    path = shared_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"
    with openslide.OpenSlide(path) as slide:
        region = np.asarray(slide.read_region((1000, 700), level, (700, 700)).convert("RGB"))
        ratio = mpp / 0.25 / slide.level_downsamples[level]
    with open_slide(path, mpp=0.25) as reader:
        got = reader.read((1000, 700), 200, mpp).astype(float)
    assert np.abs(got - expected(region, (0, 0), 200, ratio)).mean() < 0.5
