"""Reading by JPEG tiles: the same pixels as OpenSlide's, in every layout of colours and tables, and what it refuses."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from papsmear.errors import InputError
from papsmear.tiling import jpeg
from papsmear.tiling.phantom.scene import Scene
from papsmear.tiling.reader import SlideReader, open_slide
from papsmear.turbo import library

LAYOUTS = ("444", "422", "420", "rgb")
TILE_PX = 256
APERIO = "Aperio Image Library v12.0.16\r\n{0}x{1} [0,0 {0}x{1}] ({2}x{2}) JPEG/RGB Q=90|AppMag = 40|MPP = {3}"


def encoded(tile: NDArray[np.uint8], layout: str, quality: int) -> bytes:
    if layout == "rgb":
        return bytes(imagecodecs.jpeg8_encode(tile, level=quality, colorspace="RGB", outcolorspace="RGB"))
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(tile), quality, colorsubsampling=layout))


def parted(stream: bytes) -> tuple[bytes, bytes]:
    """A JPEG's tables as a stream of their own, and the stream without them."""
    tables, rest, at = b"", stream[:2], 2
    while (marker := stream[at + 1]) != 0xDA:
        size = 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker in (0xDB, 0xC4):
            tables += stream[at : at + size]
        elif marker != 0xE0:
            rest += stream[at : at + size]
        at += size
    return b"\xff\xd8" + tables + b"\xff\xd9", rest + stream[at:]


def write_slide(
    path: Path, rgb: NDArray[np.uint8], layout: str, mpp: float, shared_tables: bool = False, aperio: bool = False
) -> Path:
    """A pyramid (1, 4) of JPEG tiles; Aperio's, or a generic one that tells its µm/px by the resolution.

    Level 4 is the mean of what level 0 shows, hardly compressed: what a scanner loses there is not in question here.
    """
    for shrink in (1, 4):
        with tifffile.TiffWriter(path, append=shrink > 1) as tiff:
            size = (rgb.shape[1] // shrink, rgb.shape[0] // shrink)
            cut = rgb[: size[1] * shrink, : size[0] * shrink]  # as scanners do with what is left over
            level = np.asarray(cv2.resize(cut, size, interpolation=cv2.INTER_AREA), np.uint8)
            below, right = (-side % TILE_PX for side in level.shape[:2])
            grey = np.pad(level, ((0, below), (0, right), (0, 0)), constant_values=77)  # must never be seen
            at = [(y, x) for y in range(0, level.shape[0], TILE_PX) for x in range(0, level.shape[1], TILE_PX)]
            quality = 90 if shrink == 1 else 100
            streams = [encoded(grey[y : y + TILE_PX, x : x + TILE_PX], layout, quality) for y, x in at]
            tags: list[Any] = []
            if shared_tables:
                tables = {parted(stream)[0] for stream in streams}
                assert len(tables) == 1
                streams = [parted(stream)[1] for stream in streams]
                tags = [(347, 7, len(table := tables.pop()), table, True)]
            tiff.write(
                iter(streams),
                shape=level.shape,
                dtype=np.uint8,
                photometric="rgb" if layout == "rgb" else "ycbcr",
                compression="jpeg",
                compressionargs={"outcolorspace": "rgb"} if layout == "rgb" else None,
                subsampling=None if layout == "rgb" else {"444": (1, 1), "422": (2, 1), "420": (2, 2)}[layout],
                tile=(TILE_PX, TILE_PX),
                subfiletype=int(shrink > 1 and not aperio),
                description=APERIO.format(*size, TILE_PX, mpp) if aperio else None,
                resolution=(1e4 / mpp / shrink, 1e4 / mpp / shrink),
                resolutionunit="CENTIMETER",
                extratags=tags,
                metadata=None,
                software=False,
            )
        rgb = level0(path)
    return path


@pytest.fixture(scope="module")
def phantom_rgb() -> NDArray[np.uint8]:
    """The pixels of a phantom of half a millimetre, its sides no multiples of anything."""
    return np.concatenate(list(Scene(5, "a", 0.5, 0.25, 0.1).strips()))[:2150, :2207]


@pytest.fixture(scope="module")
def slides(phantom_rgb: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("layouts")
    made = {name: write_slide(folder / f"{name}.tiff", phantom_rgb, name, 0.25) for name in LAYOUTS}
    made["tables"] = write_slide(folder / "tables.svs", phantom_rgb, "422", 0.2517, shared_tables=True, aperio=True)
    made["rgb tables"] = write_slide(folder / "rgbt.svs", phantom_rgb, "rgb", 0.25, shared_tables=True, aperio=True)
    return made


def level0(path: Path) -> NDArray[np.uint8]:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def weights(start: float, ratio: float, n: int, length: int) -> NDArray[np.float64]:
    left = start + ratio * np.arange(n)[:, None]
    pixel = np.arange(length)[None]
    return np.clip(np.minimum(left + ratio, pixel + 1) - np.maximum(left, pixel), 0, None) / ratio


def area_averaged(rgb: NDArray[np.uint8], xy: tuple[int, int], size_px: int, ratio: float) -> NDArray[np.float64]:
    """The definition: means over areas of level 0, white where there is none."""
    side = int(np.ceil(size_px * ratio)) + 1
    canvas = np.full((side, side, 3), 255.0)
    x, y = xy
    part = rgb[max(0, y) : max(0, y + side), max(0, x) : max(0, x + side)]
    canvas[max(0, -y) :, max(0, -x) :][: part.shape[0], : part.shape[1]] = part
    by = weights(0, ratio, size_px, side)
    return np.asarray(np.einsum("yi,ijc,xj->yxc", by, canvas, by, optimize=True))


def shift_px(a: NDArray[Any], b: NDArray[Any]) -> float:
    """How far one picture lies from the other, to parts of a pixel."""
    window = cv2.createHanningWindow(a.shape[1::-1], cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(*(np.float32(v).mean(axis=2) for v in (a, b)), window)
    return float(np.hypot(x, y))


def both(path: Path, mpp: float | None = None) -> Iterator[SlideReader]:
    for engine in ("openslide", "jpeg"):
        with open_slide(path, mpp, engine) as reader:
            assert reader.engine == engine
            yield reader


@pytest.mark.parametrize("name", [*LAYOUTS, "tables", "rgb tables"])
def test_both_ways_give_the_area_mean_of_level_0(name: str, slides: dict[str, Path]) -> None:
    whole = level0(slides[name])

    @settings(max_examples=25)
    @given(st.floats(0.26, 5), st.integers(-400, 2150), st.integers(-400, 2100), st.integers(8, 90))
    def check(mpp: float, x: int, y: int, size_px: int) -> None:
        for reader in both(slides[name]):
            want = area_averaged(whole, (x, y), size_px, mpp / reader.mpp)
            assert np.abs(reader.read((x, y), size_px, mpp) - want).mean() < 1

    check()


@pytest.mark.parametrize("name", [*LAYOUTS, "tables"])
@pytest.mark.parametrize("mpp", [0.26, 0.5, 0.61, 1.0])
def test_neither_way_shifts_what_it_shows(name: str, mpp: float, slides: dict[str, Path]) -> None:
    whole = level0(slides[name])
    for reader in both(slides[name]):
        for xy in ((640, 640), (701, 333)):
            want = area_averaged(whole, xy, 256, mpp / reader.mpp)
            assert shift_px(reader.read(xy, 256, mpp), want) < 0.1


@pytest.mark.parametrize("name", [*LAYOUTS, "tables"])
@pytest.mark.parametrize("mpp", [0.5, 0.75])
def test_tiles_in_rows_are_the_rectangles_one_by_one(name: str, mpp: float, slides: dict[str, Path]) -> None:
    for reader in both(slides[name]):
        step = 100 * mpp / reader.mpp
        places = np.array([(round(i * step), round(j * step)) for j in (0, 1, 2, 4) for i in (0, 3, 4, 5, 7)])
        places = places[(places + step <= np.array(reader.size_level0)).all(axis=1)]
        made = [(tile.y.copy(), tile.cb.copy(), tile.cr.copy()) for tile in reader.tiles(places, 100, mpp)]
        assert len(made) == len(places) > 10
        for (x, y), (luma, blue, red) in zip(places.tolist(), made, strict=True):
            rgb = reader.read((x, y), 100, mpp)
            y_of, cr, cb = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb))
            assert np.abs(luma.astype(float) - y_of).mean() < 0.6
            for channel, want in ((blue, cb), (red, cr)):
                small = cv2.resize(want, (50, 50), interpolation=cv2.INTER_AREA)
                assert np.abs(channel.astype(float) - small).mean() < 0.6


def test_a_slide_too_wide_for_one_strip_gives_the_same_tiles(
    slides: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = np.array([(x, y) for y in (0, 640) for x in (0, 640, 1280)])

    def tiles() -> list[bytes]:
        with open_slide(slides["420"]) as reader:
            return [tile.jpeg(90) for tile in reader.tiles(places, 320, 0.5)]

    before = tiles()
    monkeypatch.setattr(jpeg, "STRIP_BYTES", 200_000)
    assert tiles() == before


def test_the_levels_between_are_there_too(slides: dict[str, Path]) -> None:
    with open_slide(slides["420"]) as reader:
        assert reader.level_downsamples == (1, 4)
        assert [reader.downsample_for(mpp, (640, 1280), 320) for mpp in (0.25, 0.5, 1, 2, 4, 8)] == [1, 2, 4, 8, 16, 32]
        assert reader.downsample_for(0.5, (641, 1280), 320) == 1  # whose 2 x 2 px are no squares of the half size
        assert reader.downsample_for(0.49, (640, 1280), 320) == 1
        assert reader.downsample_for(1.5, (640, 1280), 320) == 2  # three of its pixels, whole


def test_the_choice_is_automatic_or_forced(
    slides: dict[str, Path], shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shared_data / "slides"
    for path, mpp, engine in (
        (slides["rgb"], None, "jpeg"),
        (real / "CMU-1-Small-Region.svs", None, "jpeg"),
        (real / "CMU-1-Small-Region-dicom", None, "openslide"),
        (real / "TCGA-CR-7395-01A-01-TS1.svs", 0.25, "openslide"),  # JPEG 2000
    ):
        with open_slide(path, mpp) as reader:
            assert reader.engine == engine
    with pytest.raises(InputError, match=r"TCGA.*not to be read by its JPEG tiles: not all its levels.*--reader=auto"):
        open_slide(real / "TCGA-CR-7395-01A-01-TS1.svs", 0.25, "jpeg")
    with pytest.raises(InputError, match="dicom files are not read this way"):
        open_slide(real / "CMU-1-Small-Region-dicom", None, "jpeg")
    monkeypatch.setattr(jpeg, "library", lambda: None)
    with open_slide(slides["rgb"]) as reader:
        assert reader.engine == "openslide"
    with pytest.raises(InputError, match="libjpeg-turbo is not there; install the package turbojpeg"):
        open_slide(slides["rgb"], None, "jpeg")


def test_libjpeg_turbo_is_here() -> None:
    assert library() is not None, "without it nothing of the above is tested"


def test_the_real_slide_by_both_ways(shared_data: Path) -> None:
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    whole = level0(path)
    rng = np.random.default_rng(0)
    for mpp in (0.499, 0.5, 0.7, 0.998, 2.2, 3.992):
        for _ in range(4):
            x, y = (int(v) for v in rng.integers(-50, np.array(whole.shape[1::-1]) - 300))
            for reader in both(path):
                got = reader.read((x, y), 128, mpp)
                want = area_averaged(whole, (x, y), 128, mpp / 0.499)
                assert np.abs(got - want).mean() < 1
                assert shift_px(got, want) < 0.1


def damaged(path: Path, out: Path, change: Callable[[bytearray, int, int], None]) -> Path:
    """A copy with the compressed bytes of one tile in the middle changed."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        at, length = page.dataoffsets[30], page.databytecounts[30]
    content = bytearray(path.read_bytes())
    change(content, at, length)
    out.write_bytes(content)
    return out


def test_a_damaged_tile_is_named(slides: dict[str, Path], tmp_path: Path) -> None:
    def noise(content: bytearray, at: int, length: int) -> None:
        content[at : at + 300] = os.urandom(300)

    def empty(content: bytearray, at: int, length: int) -> None:
        content[at : at + length] = bytes(length)

    for change in (noise, empty):
        path = damaged(slides["420"], tmp_path / f"{change.__name__}.tiff", change)
        with open_slide(path) as reader:
            assert reader.engine == "jpeg"
            with pytest.raises(InputError, match=rf"{path.name}: damaged or cut short \(tile 30: .*copy it again"):
                reader.read((0, 0), 500, 0.5)
            with pytest.raises(InputError, match=rf"{path.name}: damaged or cut short \(tile 30: "):
                list(reader.tiles(np.array([(0, 640), (640, 640)]), 320, 0.5))
