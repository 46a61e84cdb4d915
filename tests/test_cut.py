"""What is cut out of a slide by each setting: focal planes, filters, whole squares, enlarged slides."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from papsmear.cli import main
from papsmear.cohort import read_slides
from papsmear.errors import UsageError
from papsmear.tiling.cut import Plan, TileSettings, iter_tiles, plan
from papsmear.tiling.picture import focus_score, ycbcr_from_rgb
from papsmear.tiling.planes import Focus, Planes, open_planes
from papsmear.tiling.shards import Tile, read_slide_json, read_tiles


def cut(path: Path, settings: TileSettings) -> tuple[Plan, list[Tile], Counter[str]]:
    dropped = Counter[str]()
    with open_planes(path, None, None, settings.reader) as planes:
        planned = plan(planes.middle, settings)
        return planned, list(iter_tiles(planes, settings, planned, dropped)), dropped


@pytest.fixture(scope="module")
def three_planes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slides.csv of a small phantom with planes at -1, 0 and 1 µm."""
    out = tmp_path_factory.mktemp("planes")
    words = ["--slides=1", "--planes=3", "--diameter_mm=0.8", "--mpp=0.5", "--cell_sets=0", "--workers=1"]
    assert main(["phantom", str(out), *words]) == 0
    return out / "slides.csv"


def opened(slides: Path) -> Planes:
    (slide,) = read_slides(slides)
    return open_planes(slide.path, slide.z_planes)


@pytest.mark.parametrize("z", ["best", "all", 1.0])
def test_each_way_with_planes(three_planes: Path, tmp_path: Path, z: Focus) -> None:
    words = ["tile", f"--slides={three_planes}", f"--out={tmp_path / 'o'}", f"--z={z}", "--size_px=160", "--workers=1"]
    assert main(words) == 0
    folder = tmp_path / "o" / "phantom_0001"
    slide, tiles = read_slide_json(folder), list(read_tiles(folder))
    assert slide["z_um"] == [-1, 0, 1]
    assert slide["counts"]["tiles"] == len(tiles)
    with opened(three_planes) as planes:
        assert planes.z_um == (-1, 0, 1)
        for at in range(0, len(tiles), 7):
            meta, jpeg = tiles[at]
            xy = (meta["x_level0"], meta["y_level0"])
            pictures = [reader.read(xy, 160, 0.5) for reader in planes.readers]
            scores = [focus_score(ycbcr_from_rgb(picture).y) for picture in pictures]
            index = {"best": int(np.argmax(scores)), "all": at % 3}.get(str(z), 2)
            assert meta["z"] == planes.z_um[index]
            assert meta["focus"] == pytest.approx(scores[index], rel=0.01)
            shown = simplejpeg.decode_jpeg(jpeg).astype(float)
            distances = [np.abs(shown - picture).mean() for picture in pictures]
            assert np.argmin(distances) == index
    places = [(meta["x_level0"], meta["y_level0"]) for meta, _ in tiles]
    assert len(places) == len(set(places)) * (3 if z == "all" else 1)
    if z == "best":
        assert len({meta["z"] for meta, _ in tiles}) > 1


def test_a_plane_that_is_not_there(three_planes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--slides={three_planes}", f"--out={tmp_path / 'o'}", "--z=3", "--workers=1"]
    assert main(["tile", *words]) == 1
    assert "no focal plane at z 3 µm; there is -1, 0, 1" in capsys.readouterr().err


def test_filters_leave_out_the_tiles_below_them_and_count_why(small_slide: Any) -> None:
    _, everything, none = cut(small_slide.path, TileSettings("all", size_px=100))
    assert none == {}
    focus, content = (
        sorted(values)[len(values) * 2 // 3] for values in zip(*((t.focus, t.content) for t in everything), strict=True)
    )
    assert focus > 0
    assert 0 < content < 1
    settings = TileSettings("all", size_px=100, min_focus=focus, min_content=content)
    _, kept, dropped = cut(small_slide.path, settings)
    assert kept == [t for t in everything if t.focus >= focus and t.content >= content]
    assert dropped == {
        "focus": sum(t.focus < focus for t in everything),
        "content": sum(t.focus >= focus and t.content < content for t in everything),
    }
    assert min(dropped.values()) > 0


def test_content_is_where_the_cells_are(small_slide: Any) -> None:
    _, tiles, _ = cut(small_slide.path, TileSettings("all", size_px=100))
    away = [math.dist(np.add(t.xy_level0, 50), small_slide.centre_xy_level0) for t in tiles]
    inside = [t.content for t, d in zip(tiles, away, strict=True) if d < small_slide.radius_level0 - 100]
    outside = [t.content for t, d in zip(tiles, away, strict=True) if d > small_slide.radius_level0 + 150]
    assert np.mean(inside) > 0.5
    assert max(outside) < 0.05


def test_whole_squares_lie_in_the_disc(small_slide: Any) -> None:
    planned, centres, _ = cut(small_slide.path, TileSettings(size_px=100))
    _, squares, _ = cut(small_slide.path, TileSettings(size_px=100, inside="square"))
    assert planned.deposit.circle_level0 is not None
    x, y, radius = planned.deposit.circle_level0
    whole = [
        t for t in centres
        if all(math.hypot(t.xy_level0[0] + a - x, t.xy_level0[1] + b - y) <= radius for a in (0, 100) for b in (0, 100))
    ]  # fmt: skip
    assert squares == whole
    assert 0 < len(squares) < len(centres)


def test_a_coarse_slide_is_enlarged_where_that_is_asked_for(
    small_slide: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slides.csv").write_text(f"slide_id,path\ns1,{small_slide.path}\n")
    words = ["tile", f"--slides={tmp_path / 'slides.csv'}", f"--out={tmp_path / 'o'}", "--tile_mpp=0.25", "--workers=1"]
    assert main(words) == 1
    assert "--upsample=true" in capsys.readouterr().err
    assert main([*words, "--upsample=true"]) == 0
    meta, jpeg = next(read_tiles(tmp_path / "o" / "s1"))
    assert (meta["mpp"], meta["size_level0"], meta["size_px"]) == (0.25, 160, 320)
    at = (slice(meta["y_level0"], meta["y_level0"] + 160), slice(meta["x_level0"], meta["x_level0"] + 160))
    small = simplejpeg.decode_jpeg(jpeg).reshape(160, 2, 160, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - small_slide.rgb[at]).mean() < 4


@pytest.mark.parametrize("values", [{"min_focus": -1}, {"min_focus": math.nan}, {"min_content": 1.5}])
def test_scores_that_cannot_be(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"\\({next(iter(values))}\\)"):
        TileSettings(**values)
