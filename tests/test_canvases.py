"""Canvases out of shards and tiles out of tiles.csv: which are drawn, of which slides, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray

from papsmear.cohort import Slide
from papsmear.errors import InputError, UsageError
from papsmear.probes.canvases import draw_canvases, of_fold, read_labelled_tiles

Write = Callable[..., Path]


def slide(slide_id: str, label: int | None, fold: int | None = 0) -> Slide:
    return Slide(slide_id, Path(slide_id), label, slide_id, fold, "", None, None, {})


def flat(level: int) -> NDArray[np.uint8]:
    return np.full((16, 16, 3), level, np.uint8)


@pytest.fixture
def shards(tmp_path: Path, write_shards: Write) -> Path:
    """Slides of flat tiles, whose level names slide and place: p1 10.., p2 50.., n1 100.., u 200.."""
    for slide_id, first, count in (("p1", 10, 30), ("p2", 50, 10), ("n1", 100, 40), ("u", 200, 5)):
        write_shards(tmp_path / "shards", slide_id, [flat(first + i) for i in range(count)])
    return tmp_path / "shards"


SLIDES = [slide("p1", 1), slide("p2", 1), slide("n1", 0), slide("u", None), slide("not tiled", 0)]


def test_canvases_are_different_tiles_of_each_side(shards: Path) -> None:
    found = draw_canvases(shards, SLIDES, 12, seed=0)
    levels = [int(tile[0, 0, 0]) for tile in found.tiles]
    assert found.labels.tolist() == [1] * 12 + [0] * 12
    assert len(set(levels)) == 24
    for level, slide_id in zip(levels, found.slide_ids, strict=True):
        assert {"p1": 10 <= level < 40, "p2": 50 <= level < 60, "n1": 100 <= level < 140}[slide_id]
    assert found.mpp == 0.5
    again, other = (draw_canvases(shards, SLIDES, 12, seed=s) for s in (0, 1))
    assert list(found.tiles.jpegs) == list(again.tiles.jpegs) != list(other.tiles.jpegs)


def test_every_tile_of_a_side_is_equally_likely(shards: Path) -> None:
    counts = {"p1": 0, "p2": 0}
    for seed in range(60):
        for slide_id in draw_canvases(shards, SLIDES, 8, seed).slide_ids[:8]:
            counts[slide_id] += 1
    assert abs(counts["p1"] - 360) < 5 * np.sqrt(480 * 0.75 * 0.25), "three in four tiles are of p1, within five sd"


def test_fewer_tiles_than_asked_for_are_all_taken(shards: Path) -> None:
    found = draw_canvases(shards, SLIDES, 1000, seed=0)
    assert found.labels.tolist() == [1] * 40 + [0] * 40
    assert sorted(int(tile[0, 0, 0]) for tile in found.tiles) == [*range(10, 40), *range(50, 60), *range(100, 140)]


def test_what_cannot_be_drawn_from_is_refused(shards: Path, write_shards: Write) -> None:
    with pytest.raises(UsageError, match="no shards of a negative slide outside the tested fold"):
        draw_canvases(shards, [s for s in SLIDES if s.slide_id != "n1"], 5, 0)
    write_shards(shards, "p3", [flat(3)], mpp=0.25)
    with pytest.raises(UsageError, match=r"different µm/px \(0.25, 0.5\)"):
        draw_canvases(shards, [*SLIDES, slide("p3", 1)], 5, 0)


def tiles_csv(folder: Path, rows: list[str], header: str = "file,slide_id,fold,class,label,mpp") -> Path:
    (folder / "tiles").mkdir(exist_ok=True)
    for level in range(1, 5):
        (folder / f"tiles/{level}.jpg").write_bytes(simplejpeg.encode_jpeg(flat(50 * level)))
    (folder / "tiles.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "tiles.csv"


def test_labelled_tiles_are_read_and_dealt_to_folds(tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles/cut.jpg").write_bytes(simplejpeg.encode_jpeg(flat(7))[:100])
    rows = ["tiles/1.jpg,a,0,HSIL,1,0.5", "tiles/2.jpg,b,0,negative,0,0.5", "tiles/3.jpg,c,1,LSIL,1,0.5"]
    file = tiles_csv(tmp_path, [*rows, "tiles/cut.jpg,a,0,HSIL,1,0.5", "tiles/gone.jpg,b,0,negative,0,0.5"])
    found, damaged = read_labelled_tiles(file)
    assert [int(tile[0, 0, 0]) for tile in found.tiles] == [50, 100, 150]
    assert (found.slide_ids, found.labels.tolist(), found.mpp) == (("a", "b", "c"), [1, 0, 1], 0.5)
    assert damaged == {"tiles/cut.jpg": "not a whole JPEG", "tiles/gone.jpg": "No such file or directory"}
    slides = {s.slide_id: s for s in (slide("a", 1, 0), slide("b", 0, 0), slide("c", 1, 1))}
    fold = of_fold(found, slides, 0)
    assert (fold.slide_ids, fold.labels.tolist(), fold.groups().tolist()) == (("a", "b"), [1, 0], [0, 1])
    assert [int(tile[0, 0, 0]) for tile in fold.tiles] == [50, 100]
    with pytest.raises(UsageError, match="fold 1 has 1 positive and 0 negative tiles to test on"):
        of_fold(found, slides, 1)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["x,y"], "file,slide_id", "not a tiles.csv of papsmear crop"),
        (["tiles/1.jpg,a,0,HSIL,yes,0.5"], "file,slide_id,fold,class,label,mpp", "not a tiles.csv of papsmear crop"),
        (
            ["tiles/1.jpg,a,0,HSIL,1,0.5", "tiles/2.jpg,a,0,HSIL,1,0.25"],
            "file,slide_id,fold,class,label,mpp",
            r"several µm/px \(0.25, 0.5\)",
        ),
    ],
)
def test_other_lists_are_refused(tmp_path: Path, rows: list[str], header: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_labelled_tiles(tiles_csv(tmp_path, rows, header))


def test_no_tile_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the tiles: No such file"):
        read_labelled_tiles(tmp_path / "tiles.csv")
    for rows in (["tiles/gone.jpg,a,0,HSIL,1,0.5"], []):
        with pytest.raises(InputError, match=f"none of its {len(rows)} tiles can be read"):
            read_labelled_tiles(tiles_csv(tmp_path, rows))
