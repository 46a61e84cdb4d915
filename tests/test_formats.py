"""Slides of other makers: NDPI, MRXS, SVS with JPEG 2000, plain TIFF; each written here from known pixels, then tiled.

The writers make the least that is such a file, by what OpenSlide documents of the formats.
"""

import io
import json
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

from papsmear.tiling.reader import open_slide
from papsmear.tiling.tile import tile

Picture = NDArray[np.uint8]  # (H, W, 3)
MPP = 0.25


def halved(rgb: Picture) -> Picture:
    return cv2.resize(rgb, (rgb.shape[1] // 2, rgb.shape[0] // 2), interpolation=cv2.INTER_AREA).astype(np.uint8)


@pytest.fixture(scope="module")
def levels() -> list[Picture]:
    """Two levels of a picture that tells one place from any other and is smooth enough for JPEG."""
    noise = np.random.default_rng(7).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    rgb = cv2.resize(noise, (1024, 512), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    return [rgb, halved(rgb)]


# NDPI -----------------------------------------------------------------------------------------------------------------


def jpeg_with_restarts(rgb: Picture, restart_px: int) -> tuple[bytes, list[int]]:
    """A JPEG restarted every `restart_px` of each row of blocks, and where each such part starts in it."""
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=95, subsampling=0, restart_marker_blocks=restart_px // 8)
    data = stream.getvalue()
    scan = data.index(b"\xff\xda")
    start = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    markers = (i for i in range(start, len(data) - 1) if data[i] == 0xFF and 0xD0 <= data[i + 1] <= 0xD7)
    return data, [start, *(marker + 2 for marker in markers)]


def write_ndpi(path: Path, levels: list[Picture]) -> Path:
    """A TIFF of Hamamatsu's kind: 64-bit offsets of directories, one strip a page, tiles found by restart markers."""
    other_plane, macro = levels[0][::-1], np.full((64, 160, 3), 90, np.uint8)
    pages = [
        *((rgb, 40.0 / 2**level, 0) for level, rgb in enumerate(levels)),
        (other_plane, 40.0, 2000),  # 2000 nm above; OpenSlide shows the plane at 0
        (macro, -1.0, 0),
    ]
    out = bytearray(b"II*\0" + bytes(8))
    link = 4
    for rgb, lens, z_nm in pages:
        height, width = rgb.shape[:2]
        jpeg, starts = jpeg_with_restarts(np.ascontiguousarray(rgb), 64 if lens > 0 else width)
        strip = len(out)
        out += jpeg
        px_per_cm = round(1e4 / MPP * max(lens, 1) / 40)
        tags: list[tuple[int, str, list[float]]] = [
            (256, "I", [width]),
            (257, "I", [height]),
            (258, "H", [8, 8, 8]),
            (259, "H", [7]),
            (262, "H", [6]),
            (271, "B", list(b"Hamamatsu\0")),
            (273, "I", [strip]),
            (277, "H", [3]),
            (278, "I", [height]),
            (279, "I", [len(jpeg)]),
            (282, "II", [px_per_cm, 1]),
            (283, "II", [px_per_cm, 1]),
            (296, "H", [3]),
            (65420, "I", [1]),
            (65421, "f", [lens]),
            (65422, "i", [0]),
            (65423, "i", [0]),
            (65424, "i", [z_nm]),
            (65426, "I", list(starts)),
        ]
        link = append_directory(out, link, tags)
    path.write_bytes(out)
    return path


def append_directory(out: bytearray, link: int, tags: list[tuple[int, str, list[float]]]) -> int:
    """Appends a directory, lets the 8 bytes at `link` point to it, and says where its own link is."""
    kinds = {"B": 2, "H": 3, "I": 4, "II": 5, "i": 9, "f": 11}
    entries = b""
    for tag, kind, values in tags:
        data = struct.pack(f"<{len(values)}{kind[0]}", *values)
        if len(data) > 4:
            place = struct.pack("<I", len(out))
            out += data
        else:
            place = data.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kinds[kind], len(values) // len(kind)) + place
    out += bytes(len(out) % 2)
    struct.pack_into("<Q", out, link, len(out))
    out += struct.pack("<H", len(tags)) + entries
    link = len(out)
    out += bytes(8) + bytes(4 * len(tags))  # no further directory; the upper halves of the values
    return link


# MRXS -----------------------------------------------------------------------------------------------------------------

PHOTOS = (5, 2)  # the camera's photos across and down, each of 2 x 2 pictures
PHOTO_PX, OVERLAP_PX = 256, 64  # they overlap from left to right
MISSING = (2, 1)  # one that the scanner left out
FILL = (230, 240, 250)
SLIDE_ID = "0123456789ABCDEF"


def photo_places(size: tuple[int, int]) -> list[list[int]]:
    """Where each photo was really taken, (N, 2) in level-0 pixels: not quite on the grid, and even for level 1."""
    jitter = np.random.default_rng(1).integers(-4, 5, (PHOTOS[0] * PHOTOS[1], 2)) * 2
    jitter[0] = 0
    grid = [(x * (PHOTO_PX - OVERLAP_PX), y * PHOTO_PX) for y in range(PHOTOS[1]) for x in range(PHOTOS[0])]
    return np.clip(jitter + grid, 0, np.array(size) - PHOTO_PX).tolist()


def write_mrxs(path: Path, levels: list[Picture], form: Literal["JPEG", "PNG"]) -> Path:
    """A MIRAX slide of two levels: a small picture, and a folder with the pictures, their places and what they are."""
    folder = path.with_suffix("")
    folder.mkdir()
    path.write_bytes(simplejpeg.encode_jpeg(np.full((64, 64, 3), 255, np.uint8)))
    data = bytearray()
    pictures: tuple[list[tuple[int, int, int]], ...] = ([], [])  # of each level: number, offset, bytes
    places = photo_places((levels[0].shape[1], levels[0].shape[0]))
    for photo, (x, y) in enumerate(places):
        column, row = photo % PHOTOS[0], photo // PHOTOS[0]
        for level, dx, dy in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 0)):
            if (column, row) != MISSING:
                left, top = x // 2**level + 128 * dx, y // 2**level + 128 * dy
                stream = io.BytesIO()
                part = levels[level][top : top + 128, left : left + 128]
                Image.fromarray(part).save(stream, form, quality=95, subsampling=0)
                number = 2 * column + dx + (2 * row + dy) * 2 * PHOTOS[0]
                pictures[level].append((number, len(data), len(stream.getvalue())))
                data += stream.getvalue()
    positions = b"".join(struct.pack("<bii", 1, *place) for place in places)
    (folder / "Data0000.dat").write_bytes(data + positions)
    (folder / "Index.dat").write_bytes(mrxs_index(pictures, (len(data), len(positions))))
    (folder / "Slidedat.ini").write_text(mrxs_ini(form), "utf-8-sig")
    return path


def mrxs_index(pictures: tuple[list[tuple[int, int, int]], ...], positions: tuple[int, int]) -> bytes:
    """Pointers to each level's list of pictures, each list in one page, and to the one record of other data."""
    out = bytearray(b"01.02" + SLIDE_ID.encode())
    table = len(out) + 8
    out += struct.pack("<ii", table, table + 8) + bytes(12)
    for level, found in enumerate(pictures):
        struct.pack_into("<i", out, table + 4 * level, len(out))
        out += struct.pack("<iiii", 0, len(out) + 8, len(found), 0)
        out += b"".join(struct.pack("<iiii", *picture, 0) for picture in found)
    struct.pack_into("<i", out, table + 8, len(out))
    out += struct.pack("<iiiiiiiii", 0, len(out) + 8, 1, 0, 0, 0, *positions, 0)
    return bytes(out)


def mrxs_ini(form: str) -> str:
    sections: dict[str, dict[str, object]] = {
        "GENERAL": {
            "SLIDE_VERSION": "01.02",
            "SLIDE_ID": SLIDE_ID,
            "IMAGENUMBER_X": 2 * PHOTOS[0],
            "IMAGENUMBER_Y": 2 * PHOTOS[1],
            "OBJECTIVE_MAGNIFICATION": 40,
            "CameraImageDivisionsPerSide": 2,
        },
        "HIERARCHICAL": {
            "HIER_COUNT": 1,
            "HIER_0_NAME": "Slide zoom level",
            "HIER_0_COUNT": 2,
            "HIER_0_VAL_0_SECTION": "LEVEL_0",
            "HIER_0_VAL_1_SECTION": "LEVEL_1",
            "NONHIER_COUNT": 1,
            "NONHIER_0_NAME": "VIMSLIDE_POSITION_BUFFER",
            "NONHIER_0_COUNT": 1,
            "INDEXFILE": "Index.dat",
        },
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
    }
    for level in range(2):
        sections[f"LEVEL_{level}"] = {
            "OVERLAP_X": OVERLAP_PX / 2**level,
            "OVERLAP_Y": 0,
            "MICROMETER_PER_PIXEL_X": MPP * 2**level,
            "MICROMETER_PER_PIXEL_Y": MPP * 2**level,
            "IMAGE_FORMAT": form,
            "IMAGE_FILL_COLOR_BGR": FILL[0] | FILL[1] << 8 | FILL[2] << 16,
            "DIGITIZER_WIDTH": 128,
            "DIGITIZER_HEIGHT": 128,
            "IMAGE_CONCAT_FACTOR": level,
        }
    lines = [(f"[{name}]", *(f"{key} = {value}" for key, value in keys.items())) for name, keys in sections.items()]
    return "\n".join(line for section in lines for line in section)


# SVS with JPEG 2000, plain TIFF ---------------------------------------------------------------------------------------


def write_jpeg2000_svs(path: Path, levels: list[Picture], compression: Literal[33003, 33005]) -> Path:
    """An Aperio SVS whose tiles are JPEG 2000 in YCbCr (33003) or in RGB (33005)."""
    about = f"Aperio Image Library v11.2.1\r\n{{}}x{{}} (256x256) J2K/KDU Q=70|AppMag = 40|MPP = {MPP}"
    with tifffile.TiffWriter(path) as tiff:
        for rgb in levels:
            pixels = rgb if compression == 33005 else cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., (0, 2, 1)]
            tiles = (
                imagecodecs.jpeg2k_encode(
                    np.ascontiguousarray(pixels[y : y + 256, x : x + 256]),
                    codecformat="j2k",
                    mct=False,
                    reversible=True,
                )
                for y in range(0, rgb.shape[0], 256)
                for x in range(0, rgb.shape[1], 256)
            )
            tiff.write(
                tiles,
                shape=rgb.shape,
                dtype=np.uint8,
                tile=(256, 256),
                photometric="rgb" if compression == 33005 else "ycbcr",
                compression=compression,
                description=about.format(rgb.shape[1], rgb.shape[0]),
                metadata=None,
            )
    return path


def write_tiff(path: Path, levels: list[Picture], compression: str) -> Path:
    """A tiled TIFF with its coarser levels as further pages."""
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level, rgb in enumerate(levels):
            scale = (1e4 / MPP / 2**level,) * 2
            tiff.write(
                rgb,
                tile=(128, 128),
                photometric="rgb",
                compression=compression,
                resolution=scale,
                resolutionunit="CENTIMETER",
                subfiletype=min(level, 1),
                metadata=None,
            )
    return path


# ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A kind of file: how one is made, what OpenSlide calls it, and by how much its pixels may differ in the mean."""

    file: str
    vendor: str
    write: Callable[[Path, list[Picture]], Path]
    tolerance: float


FORMATS = [
    Format("a.ndpi", "hamamatsu", write_ndpi, 1.5),
    Format("jpeg.mrxs", "mirax", partial(write_mrxs, form="JPEG"), 1.5),
    Format("png.mrxs", "mirax", partial(write_mrxs, form="PNG"), 0.01),
    Format("ycbcr.svs", "aperio", partial(write_jpeg2000_svs, compression=33003), 1.0),
    Format("rgb.svs", "aperio", partial(write_jpeg2000_svs, compression=33005), 0.01),
    Format("deflate.tif", "generic-tiff", partial(write_tiff, compression="deflate"), 0.01),
    Format("lzw.tif", "generic-tiff", partial(write_tiff, compression="lzw"), 0.01),
]


def shown(wanted: Format, levels: list[Picture]) -> list[Picture]:
    """The levels as the format shows them: where no photo of an MRXS lies, there is the colour of its glass."""
    if wanted.vendor != "mirax":
        return levels
    covered = np.zeros(levels[0].shape, bool)
    for photo, (x, y) in enumerate(photo_places((1024, 512))):
        if (photo % PHOTOS[0], photo // PHOTOS[0]) != MISSING:
            covered[y : y + PHOTO_PX, x : x + PHOTO_PX] = True
    return [np.where(covered[:: 2**i, :: 2**i], rgb, FILL).astype(np.uint8) for i, rgb in enumerate(levels)]


@pytest.mark.parametrize("wanted", FORMATS, ids=lambda wanted: wanted.file)
def test_levels_and_pixels(tmp_path: Path, levels: list[Picture], wanted: Format) -> None:
    path = wanted.write(tmp_path / wanted.file, levels)
    with open_slide(path) as reader:
        assert (reader.format, round(reader.mpp, 6), reader.mpp_from) == (wanted.vendor, MPP, "file")
        assert reader.level_sizes[:2] == ((1024, 512), (512, 256))  # OpenSlide makes more for NDPI
        for level, rgb in enumerate(shown(wanted, levels)):
            height = 512 // 2**level
            for x in (0, 512):
                got = reader.read((x, 0), height, MPP * 2**level).astype(float)
                part = rgb[:, x // 2**level :][:, :height]
                assert np.abs(got - part).mean() <= wanted.tolerance


@pytest.mark.parametrize("wanted", FORMATS, ids=lambda wanted: wanted.file)
def test_tiles(tmp_path: Path, levels: list[Picture], wanted: Format) -> None:
    wanted.write(tmp_path / wanted.file, levels)
    (tmp_path / "slides.csv").write_text(f"slide_id,path\na,{wanted.file}\n")
    assert tile(tmp_path / "slides.csv", tmp_path / "out", area="all", size_px=100, quality=100, workers=1) == 0
    told = json.loads((tmp_path / "out/a/slide.json").read_text())
    half = shown(wanted, levels)[1]
    with tarfile.open(tmp_path / "out/a/a-000000.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    places = []
    for name in (name for name in files if name.endswith(".json")):
        about = json.loads(files[name])
        x, y = about["x_level0"], about["y_level0"]
        got = simplejpeg.decode_jpeg(files[name.replace(".json", ".jpg")]).astype(float)
        assert np.abs(got - half[y // 2 :, x // 2 :][:100, :100]).mean() < wanted.tolerance + 1.5  # the tile's own JPEG
        places.append((x, y))
    assert sorted(places) == [(x, y) for x in range(0, 1000, 200) for y in (0, 200)]
    assert told["counts"]["tiles"] == 10
