"""The pictures of annotated cells: which squares they are, and that they are the slide's own pixels."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray


def rgb_of(file: Path) -> NDArray[np.uint8]:
    if file.suffix == ".jpg":
        return np.asarray(simplejpeg.decode_jpeg(file.read_bytes()), np.uint8)
    return np.asarray(cv2.imread(str(file)), np.uint8)[..., ::-1]


def shape(kind: str, coordinates: Any, name: str = "HSIL") -> dict[str, Any]:
    return {"geometry": {"type": kind, "coordinates": coordinates}, "properties": {"classification": {"name": name}}}


def box(left: float, top: float, width: float, height: float, name: str = "HSIL") -> dict[str, Any]:
    right, bottom = left + width, top + height
    return shape("Polygon", [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]], name)


def test_points_boxes_and_outlines_become_squares(bench: Any) -> None:
    bench.annotate(
        box(1000, 900, 40, 90),
        shape("MultiPoint", [[1200, 1000], [1301.5, 1000]]),
        shape("Polygon", [[[800, 800], [860, 810], [830, 850]]]),
    )
    assert bench.run("--margin_um=4", "--point_um=20") == 0
    found = [tuple(int(row[key]) for key in ("x_level0", "y_level0", "size_px")) for row in bench.cells()]
    assert found == [
        (967, 892, 106),  # 90 px and 4 µm, 8 px, on both sides of it
        (1172, 972, 56),
        (1274, 972, 56),  # halves up
        (792, 787, 76),
    ]
    rgb = bench.slide.rgb
    for row, (x, y, side) in zip(bench.cells(), found, strict=True):
        assert (rgb_of(bench.out / row["file"]) == rgb[y : y + side, x : x + side]).all()
    tiles = [(int(row["x_level0"]), int(row["y_level0"])) for row in bench.tiles()]
    assert tiles == [(860, 785), (1040, 840), (1142, 840), (670, 665)]
    assert len(bench.tiles("0")) == 4


def test_cells_at_the_edge(bench: Any) -> None:
    bench.annotate(
        box(-20, 500, 60, 60),
        box(2380, 1960, 60, 60),
        box(-31, 500, 60, 60),
        box(2375, 100, 50, 50),
        box(9000, 1, 9, 9),
    )
    assert bench.run() == 0
    assert [(row["x_level0"], row["y_level0"]) for row in bench.cells()] == [("-24", "496")]
    crop = rgb_of(bench.out / bench.cells()[0]["file"])
    assert (crop[:, 24:] == bench.slide.rgb[496:564, :44]).all()
    beyond = crop[:, :24].reshape(-1, 3)
    assert (beyond == beyond[0]).all()
    assert beyond[0].min() > 200
    assert [(row["x_level0"], row["y_level0"]) for row in bench.tiles()] == [("0", "370")]
    problems = json.loads((bench.out / "crop.json").read_text())["problems"]
    assert [(p["feature"], p["problem"]) for p in problems] == [(f"f{n}", "outside the slide") for n in (2, 3, 4, 5)]


def test_tiles_are_moved_onto_the_slide_and_kept_apart(bench: Any) -> None:
    bench.annotate(box(2340, 1940, 50, 50), box(2300, 1900, 60, 60), box(10, 30, 20, 20))
    assert bench.run() == 0
    assert [row["file"] for row in bench.tiles()] == [
        "tiles/positive/s1_x2080_y1680.jpg", "tiles/positive/s1_x2080_y1680_2.jpg", "tiles/positive/s1_x0_y0.jpg",
    ]  # fmt: skip
    for row in bench.tiles():
        assert (bench.out / row["file"]).is_file()
    assert len({row["file"] for row in bench.cells()}) == 3


def test_a_slide_smaller_than_a_tile(bench: Any, write_tiff: Callable[..., Path], tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "tiny.tiff", bench.slide.rgb[800:1000, 1000:1500])
    bench.annotate(box(400, 100, 50, 50))
    bench.name(f"s1,{path},1,0,s1.geojson", "n1,gone.svs,0,0,")
    assert bench.run() == 0
    (tile,) = bench.tiles()
    assert (tile["x_level0"], tile["y_level0"]) == ("180", "0")
    rgb = rgb_of(bench.out / tile["file"]).astype(float)
    assert np.abs(rgb[:200] - bench.slide.rgb[800:1000, 1180:1500]).mean() < 5
    assert rgb[208:].min() > 200


def test_the_mpp_of_a_slide_without_one(
    bench: Any, write_tiff: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_tiff(tmp_path / "bare.tiff", bench.slide.rgb, None)
    bench.annotate(box(1000, 1000, 40, 40))
    bench.name(f"s1,{bare},1,0,s1.geojson", "n1,gone.svs,0,0,")
    assert bench.run() == 1
    assert "column mpp of slides.csv" in capsys.readouterr().err
    assert not bench.out.exists()
    assert bench.run("--mpp=0.25") == 0
    assert [(row["size_px"], row["size_level0"]) for row in bench.cells()] == [("28", "56.0")]
    assert [(row["size_px"], row["size_level0"]) for row in bench.tiles()] == [("320", "640.0")]


def test_a_slide_coarser_than_the_tiles_fails(
    bench: Any, write_tiff: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse = write_tiff(tmp_path / "coarse.tiff", bench.slide.rgb, 1.0)
    bench.annotate(box(1000, 1000, 40, 40))
    bench.name(f"s1,{coarse},1,0,s1.geojson", "n1,gone.svs,0,0,")
    assert bench.run() == 1
    assert "the slide has 1 µm/px" in capsys.readouterr().err
    assert bench.run("--upsample=true") == 0
    assert [(row["size_px"], row["size_level0"]) for row in bench.cells()] == [("88", "44.0")]
    assert rgb_of(bench.out / bench.tiles()[0]["file"]).shape == (320, 320, 3)


def test_of_several_focal_planes_the_sharpest_where_the_cell_lies(
    bench: Any, write_tiff: Callable[..., Path], tmp_path: Path
) -> None:
    blurred = cv2.GaussianBlur(bench.slide.rgb, (0, 0), 3)
    left, right = bench.slide.rgb.copy(), bench.slide.rgb.copy()
    left[:, 1200:], right[:, :1200] = blurred[:, 1200:], blurred[:, :1200]
    write_tiff(tmp_path / "s1.tiff", left)
    write_tiff(tmp_path / "s1_z+1.tiff", right)
    bench.annotate(box(900, 900, 40, 40), box(1500, 900, 40, 40))
    bench.slides.write_text(
        "slide_id,path,label,annotations,z_planes\ns1,s1.tiff,1,s1.geojson,s1_z{z:+d}.tiff\nn1,gone.svs,0,,\n"
    )
    assert bench.run() == 0
    for row in (*bench.cells(), *bench.tiles()):
        x, y, side = (int(row[key]) for key in ("x_level0", "y_level0", "size_px"))
        got, at = rgb_of(bench.out / row["file"]).astype(float), (slice(y, y + side), slice(x, x + side))
        assert np.abs(got - bench.slide.rgb[at]).mean() <= (0 if row["file"].endswith(".png") else 3.5)
        assert np.abs(got - blurred[at]).mean() > 1


def test_a_slide_that_cannot_be_read_is_named_and_tried_again(
    bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bench.annotate(box(1000, 1000, 40, 40))
    late = tmp_path / "late.tiff"
    bench.name(*bench.slides.read_text().splitlines()[1:], f"s2,{late},1,0,s1.geojson")
    assert bench.run() == 1
    error = capsys.readouterr().err
    assert f"slide s2 failed: {late}: cannot read the slide: No such file" in error
    assert "1 slides failed" in error
    assert [row["slide_id"] for row in bench.cells()] == ["s1"]
    assert json.loads((bench.out / "crop.json").read_text())["failed"] == ["s2"]
    shutil.copy(bench.slide.path, late)
    assert bench.run() == 0
    assert [row["slide_id"] for row in bench.cells()] == ["s1", "s2"]
    assert bench.run() == 0
    assert "done before" in capsys.readouterr().err.splitlines()[-1]


def test_a_slide_damaged_where_the_cells_lie_leaves_no_picture(
    bench: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import tifffile

    bench.annotate(box(10, 10, 40, 40), box(1000, 1500, 40, 40))
    path = tmp_path / "damaged.tiff"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(bench.slide.rgb, tile=(256, 256), photometric="rgb", compression="jpeg", resolution=(2e4, 2e4),
                   resolutionunit="CENTIMETER")  # fmt: skip
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        at, n = page.dataoffsets[5 * 10 + 4], page.databytecounts[5 * 10 + 4]
    data = bytearray(path.read_bytes())
    data[at : at + n] = bytes(n)
    path.write_bytes(data)
    bench.name(f"s1,{path},1,0,s1.geojson", f"s2,{bench.slide.path},1,0,s1.geojson", "n1,gone.svs,0,0,")
    assert bench.run() == 1
    assert "slide s1 failed: " in capsys.readouterr().err
    assert {file.name.partition("_")[0] for file in (bench.out / "cells" / "HSIL").iterdir()} == {"s2"}
    assert len(list((bench.out / "tiles" / "positive").iterdir())) == len(bench.tiles()) == 2
