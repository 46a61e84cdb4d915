"""Phantom SVS files: what OpenSlide and TIFF readers see of them, and how little memory they take."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from papsmear.files import sha256
from papsmear.tiling.phantom.identity import Identity, label_picture
from papsmear.tiling.phantom.svs import write_svs

SIZE = (1552, 1296)  # neither a multiple of the tile's side
IDENTITY = Identity("Zephyrine Quillfeather", "otto.phantasm", "03/14/24", "CYT00012345")


def _strips(rgb: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    return (rgb[top : top + 256] for top in range(0, rgb.shape[0], 256))


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    """Smooth, so that JPEG hardly changes it, with strong colours, so that a wrong colour space does."""
    noise = np.random.default_rng(0).normal(0, 1, (4, 5, 3))
    smooth = cv2.resize(noise, SIZE, interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth * 60 + (200, 90, 130), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def slide(picture: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("svs") / "a.svs"
    write_svs(path, SIZE, _strips(picture), 0.25, IDENTITY)
    return path


def _rgb(image: object) -> NDArray[np.float64]:
    return np.asarray(image.convert("RGB"), np.float64)


def test_openslide_reads_it_as_aperio(slide: Path) -> None:
    with openslide.OpenSlide(slide) as opened:
        assert opened.properties["openslide.vendor"] == "aperio"
        assert opened.dimensions == SIZE
        assert opened.level_downsamples == (1, 4, 16)
        assert float(opened.properties["openslide.mpp-x"]) == 0.25
        assert opened.properties["openslide.objective-power"] == "40"
        assert opened.properties["aperio.MPP"] == "0.2500"
        assert opened.properties["aperio.User"] == IDENTITY.user
        assert IDENTITY.patient in opened.properties["openslide.comment"]
        assert set(opened.associated_images) == {"thumbnail", "label", "macro"}
        label = _rgb(opened.associated_images["label"])
        thumbnail = opened.associated_images["thumbnail"]
    assert np.abs(label - label_picture(IDENTITY)).mean() < 3
    assert thumbnail.size == (SIZE[0] // 16, SIZE[1] // 16)


def test_label_tells_names_apart() -> None:
    other = Identity("Ottoline Umberglass", IDENTITY.user, IDENTITY.date, IDENTITY.barcode)
    assert not np.array_equal(label_picture(IDENTITY), label_picture(other))


def test_tiff_tags(slide: Path) -> None:
    with tifffile.TiffFile(slide) as tiff:
        assert tiff.is_bigtiff
        assert tiff.is_svs
        pages = list(tiff.pages)
        for page in pages:
            assert page.photometric == tifffile.PHOTOMETRIC.YCBCR
            assert page.compression == tifffile.COMPRESSION.JPEG
            assert page.subsampling == (2, 2)
            assert "DateTime" not in page.tags
        assert [page.shape[:2] for page in pages[:4]] == [(1296, 1552), (81, 97), (324, 388), (81, 97)]
        assert [page.is_tiled for page in pages] == [True, False, True, True, False, False]
        assert {page.tile for page in pages if page.is_tiled} == {(256, 256)}
        assert len(pages[0].dataoffsets) == 7 * 6
        assert pages[0].description.startswith("Aperio Image Library")
        assert "|AppMag = 40|" in pages[0].description


@pytest.mark.parametrize(("level", "shrink"), [(0, 1), (1, 4), (2, 16)])
def test_levels_are_area_means_to_the_last_pixel(
    slide: Path, picture: NDArray[np.uint8], level: int, shrink: int
) -> None:
    width, height = SIZE[0] // shrink, SIZE[1] // shrink
    wanted = picture.reshape(height, shrink, width, shrink, 3).mean((1, 3))
    with openslide.OpenSlide(slide) as opened:
        seen = _rgb(opened.read_region((0, 0), level, (width, height)))
    error = np.abs(seen - wanted)
    assert error.mean() < 1.5
    assert error.mean(2).max() < 12  # a tile or a row in the wrong place would be far off
    assert np.abs((seen - wanted).mean((0, 1))).max() < 1


def test_same_pixels_same_bytes(slide: Path, picture: NDArray[np.uint8], tmp_path: Path) -> None:
    write_svs(tmp_path / "again.svs", SIZE, _strips(picture), 0.25, IDENTITY)
    assert sha256(tmp_path / "again.svs") == sha256(slide)


@pytest.mark.parametrize("size", [(16, 16), (16, 1040), (272, 256), (4112, 16)])
def test_odd_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    rgb = np.full((size[1], size[0], 3), (180, 60, 90), np.uint8)
    write_svs(tmp_path / "a.svs", size, _strips(rgb), 0.5, IDENTITY, app_mag=20)
    with openslide.OpenSlide(tmp_path / "a.svs") as opened:
        assert opened.dimensions == size
        assert opened.properties["openslide.objective-power"] == "20"
        last = opened.level_count - 1
        for level in range(opened.level_count):
            corner = (size[0] - 16, size[1] - 16)
            pixel = _rgb(opened.read_region(corner, level, (1, 1)))
            assert np.abs(pixel - (180, 60, 90)).max() < 4
        assert opened.level_dimensions[last] == (size[0] // 16, size[1] // 16)


@pytest.mark.parametrize("fault", ["narrow", "short", "long"])
def test_wrong_strips_leave_no_file(fault: str, tmp_path: Path) -> None:
    rgb = np.zeros((512, 256, 3), np.uint8)
    strips = {
        "narrow": [rgb[:256, :255]],
        "short": [rgb[:256]],
        "long": [rgb[:256], rgb[256:], rgb[:256]],
    }[fault]
    with pytest.raises(ValueError, match="strip"):
        write_svs(tmp_path / "a.svs", (256, 512), strips, 0.25, IDENTITY)
    assert list(tmp_path.iterdir()) == []


def test_size_that_does_not_divide(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        write_svs(tmp_path / "a.svs", (250, 256), [], 0.25, IDENTITY)


_PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
from papsmear.tiling.phantom.identity import Identity
from papsmear.tiling.phantom.svs import write_svs

def write(height):
    strip = np.full((256, 2048, 3), 230, np.uint8)
    strips = (strip.copy() for _ in range(height // 256))
    write_svs(Path(sys.argv[1]), (2048, height), strips, 0.25, Identity("A B", "c", "d", "e"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

print(write(8192), write(65536))
"""


def test_memory_does_not_grow_with_height(tmp_path: Path) -> None:
    """Eight times the height is 336 MB more of pixels on level 0, 21 MB on level 4."""
    command = [sys.executable, "-c", _PEAK, str(tmp_path / "a.svs")]
    small, large = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert large - small < 12
