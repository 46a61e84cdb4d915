"""A slide's folder against the slide itself: real slides and phantoms."""

import math
from pathlib import Path

import numpy as np
import openslide
import pytest
import simplejpeg
from numpy.typing import NDArray

from papsmear.cli import main
from papsmear.tiling.picture import ycbcr_from_rgb
from papsmear.tiling.reader import open_slide
from papsmear.tiling.shards import read_slide_json, read_tiles


def slide_list(folder: Path, *rows: str, header: str = "slide_id,path") -> Path:
    file = folder / "slides.csv"
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def run(slides: Path, out: Path, *options: str) -> int:
    return main(["tile", f"--slides={slides}", f"--out={out}", "--workers=1", *options])


@pytest.mark.parametrize(
    ("name", "mpp", "area", "count"),
    [
        ("CMU-1-Small-Region.svs", 0.499, "all", 6 * 9),
        ("CMU-1-Small-Region-dicom", 0.499, "all", 6 * 9),
        ("TCGA-CR-7395-01A-01-TS1.svs", 0.25, "all", 6 * 5),
    ],
)
def test_real_slides_are_what_openslide_gives(
    shared_data: Path, tmp_path: Path, name: str, mpp: float, area: str, count: int
) -> None:
    path = shared_data / "slides" / name
    slides = slide_list(tmp_path, f"real,{path}")
    assert run(slides, tmp_path / "o", f"--area={area}", "--mpp=0.25") == 0
    slide = read_slide_json(tmp_path / "o" / "real")
    assert (slide["mpp"], slide["counts"]["tiles"]) == (mpp, count)
    assert slide["source"]["name"] == name
    side = 320 * 0.5 / mpp
    with (
        openslide.OpenSlide(path if path.is_file() else min(path.iterdir())) as source,
        open_slide(path, mpp) as reader,
    ):
        for meta, jpeg in list(read_tiles(tmp_path / "o" / "real"))[::7]:
            assert (meta["mpp"], meta["size_px"]) == (0.5, 320)
            assert meta["size_level0"] == pytest.approx(side, abs=1e-3)
            corner = (meta["x_level0"], meta["y_level0"])
            n = math.ceil(side)
            region = np.asarray(source.read_region(corner, 0, (n, n)).convert("RGB"), float)
            want = np.einsum("yi,ijc,xj->yxc", weights := area_weights(side, n), region, weights, optimize=True)
            rounded = np.ascontiguousarray(np.floor(want + 0.5), np.uint8)
            (picture,) = reader.tiles(np.array([corner]), 320, 0.5)
            for channel, wanted in zip(picture, ycbcr_from_rgb(rounded), strict=True):
                assert np.abs(channel.astype(float) - wanted).mean() < 0.5
            same_jpeg = simplejpeg.encode_jpeg(rounded, 90, colorsubsampling="420")
            got = simplejpeg.decode_jpeg(jpeg).astype(float)
            assert got.shape == (320, 320, 3)
            # Histology is rich in detail that JPEG takes away: no more than from the area mean itself.
            assert np.abs(got - want).mean() < 7
            assert np.abs(got - want).mean() < np.abs(simplejpeg.decode_jpeg(same_jpeg) - want).mean() + 0.05
            assert abs((got - want).mean()) < 0.5


def area_weights(side: float, n: int) -> NDArray[np.float64]:
    """How much of each of `n` pixels lies in each of the 320 pixels of a tile of `side`, (320, n)."""
    left, pixel = np.arange(320)[:, None] * side / 320, np.arange(n)
    return np.clip(np.minimum(left + side / 320, pixel + 1) - np.maximum(left, pixel), 0, None) * 320 / side


def test_phantoms(tmp_path: Path) -> None:
    assert (
        main(
            [
                "phantom",
                str(tmp_path / "p"),
                "--slides=2",
                "--diameter_mm=0.8",
                "--cell_sets=0",
                "--mpp=0.5",
                "--workers=1",
            ]
        )
        == 0
    )
    assert run(tmp_path / "p" / "slides.csv", tmp_path / "o") == 0
    for name in ("phantom_0001", "phantom_0002"):
        slide = read_slide_json(tmp_path / "o" / name)
        assert slide["format"] == "aperio"
        x, y, radius = slide["deposit"]["circle_level0"]
        assert radius * 2 * 0.5 / 800 == pytest.approx(0.965, abs=0.07)  # the ragged rim lies inside the circle
        assert np.hypot(x - slide["size_level0"][0] / 2, y - slide["size_level0"][1] / 2) < 0.1 * radius
        assert slide["counts"]["tiles"] == pytest.approx(math.pi * radius**2 / 320**2, rel=0.25)
        assert b"patient" not in b"".join(file.read_bytes().lower() for file in (tmp_path / "o" / name).iterdir())
