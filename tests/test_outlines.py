"""A cell's outlines: what a file may look like, which pixels they hold, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from papsmear.errors import InputError
from papsmear.tiling.phantom.outlines import Outlines, read_outline

SIZE = (40, 60)  # H, W
STAR = [
    (20 + r * np.cos(a), 18 + r * np.sin(a)) for a, r in zip(np.arange(10) * np.pi / 5, (16.3, 7.7) * 5, strict=True)
]
SQUARE = "10,10\n30,10\n30,20\n10,20\n"


def write(file: Path, points: list[tuple[float, float]]) -> Path:
    file.write_text("".join(f"{x:.6f},{y:.6f}\n" for x, y in points))
    return file


def contained(points: list[tuple[float, float]]) -> np.ndarray:
    """(H, W): each pixel's centre asked for by itself."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return Polygon(points, closed=False).contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(SIZE)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (13.37, 4.21), (-12.2, -9.8), (31.5, 0.1)])
@pytest.mark.parametrize("turn", [1, -1])
def test_the_pixels_inside_are_those_whose_centre_is(tmp_path: Path, shift: tuple[float, float], turn: int) -> None:
    """A star with dents, clockwise and not, wholly in the picture and partly out of it."""
    points = [(x + shift[0], y + shift[1]) for x, y in STAR][::turn]
    file = write(tmp_path / "a_cyt.dat", points)
    parts = Outlines(file, file).parts(SIZE)
    assert (parts.cell == contained(points)).all()
    assert (parts.nucleus == parts.cell).all()
    assert (parts.around == ~parts.cell).all()


def test_an_outline_may_reach_far_out_and_cross_itself(tmp_path: Path) -> None:
    far = [(10.5, 9.5), (900_000.5, 12.25), (10.5, 30.5)]
    generator = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 80) + generator.normal(0, 0.3, (30, 80))
    radius = generator.normal(18, 6, angle.shape)
    crossed = np.stack([30 + radius * np.cos(angle), 20 + radius * np.sin(angle)], -1).round(6).tolist()
    whole = write(tmp_path / "whole.dat", [(-1, -1), (60, -1), (60, 40), (-1, 40)])
    for points in (far, *crossed):
        inside = contained(points)
        assert 200 < inside.sum() < inside.size - 200
        assert (Outlines(whole, write(tmp_path / "c.dat", points)).parts(SIZE).nucleus == inside).all()


def test_area_and_centroid_are_those_of_the_polygon(tmp_path: Path) -> None:
    """By the shoelace formula, of the cell with its nucleus and of the nucleus."""
    cell = [(300 + 284 * np.cos(a), 200 + 186 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 90, endpoint=False)]
    nucleus = [(223.3, 126.6), (412.2, 144.4), (377.7, 279.9)]
    parts = Outlines(write(tmp_path / "c.dat", cell), write(tmp_path / "n.dat", nucleus)).parts((400, 600))
    for inside, points in ((parts.cell, cell), (parts.nucleus, nucleus)):
        (x, y), (x1, y1) = np.transpose(points), np.roll(np.transpose(points), -1, axis=1)
        cross = x * y1 - x1 * y
        area = cross.sum() / 2
        centre = [((x + x1) * cross).sum() / (6 * area), ((y + y1) * cross).sum() / (6 * area)]
        assert inside.sum() == pytest.approx(abs(area), rel=0.004)
        assert np.argwhere(inside).mean(0)[::-1] == pytest.approx(centre, abs=0.1)
    assert not (parts.nucleus & ~parts.cell).any()


def test_a_nucleus_ends_where_its_cell_ends_and_may_be_missing(tmp_path: Path) -> None:
    cell, nucleus = write(tmp_path / "c.dat", STAR), tmp_path / "n.dat"
    nucleus.write_text("0,0\n59,0\n59,18\n0,18\n")
    parts = Outlines(cell, nucleus).parts(SIZE)
    above = contained(STAR) & (np.arange(SIZE[0]) <= 18)[:, None]
    assert (parts.nucleus == above).all()
    assert not Outlines(cell, None).parts(SIZE).nucleus.any()


def test_a_cell_that_the_pictures_edge_cuts_apart_is_its_larger_piece(tmp_path: Path) -> None:
    prongs = [(-5, 5), (20, 5), (20, 10), (-2, 10), (-2, 20), (40, 20), (40, 30), (-5, 30)]
    cell = Outlines(write(tmp_path / "c.dat", prongs), None).parts(SIZE).cell
    assert cell.sum() == 41 * 11
    assert cell[20:31, :41].all()


@pytest.mark.parametrize(
    "content",
    [
        SQUARE.encode(), SQUARE.replace("\n", "\r\n").encode(), SQUARE.replace("\n", "\r").encode(),
        b"\xef\xbb\xbf" + SQUARE.encode(), f"\n  \n{SQUARE}\n\n".replace(",20", ",20\n").encode(),
        SQUARE.replace(",", " , ").encode(), SQUARE.replace(",", "\t").encode(), SQUARE.replace(",", "  ").encode(),
        SQUARE.rstrip().encode(), b"10.0,1e1\n+30,10.000\n  30,20  \n10,20", (SQUARE + "10,10\n").encode(),
    ],
)  # fmt: skip
def test_ends_of_line_blanks_and_marks_do_not_matter(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a_cyt.dat"
    file.write_bytes(content)
    assert read_outline(file)[:4].tolist() == [[10, 10], [30, 10], [30, 20], [10, 20]]
    inside = Outlines(file, None).parts(SIZE).cell
    assert inside.sum() == 21 * 11
    assert inside[10:21, 10:31].all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a_cyt.dat is empty; an outline has 3 or more"),
        (b"\n \r\n", "a_cyt.dat is empty; an outline has 3 or more"),
        (b"1,2\n3,4\n", "a_cyt.dat has 2 different points; an outline has 3 or more"),
        (b"1,2\n3,4\n1,2\n", "a_cyt.dat has 2 different points; an outline has 3 or more"),
        (b"1,2\n\n3;4\n5,6\n", "a_cyt.dat, line 3: '3;4' is not a point 'x,y' in px"),
        (b"1,2\n3,4,5\n", "a_cyt.dat, line 2: '3,4,5' is not a point 'x,y' in px"),
        (b"1,2\n3\n", "a_cyt.dat, line 2: '3' is not a point 'x,y' in px"),
        (b"x,y\n1,2\n", "a_cyt.dat, line 1: 'x,y' is not a point 'x,y' in px"),
        (b"1,2\n1,,2\n", "a_cyt.dat, line 2: '1,,2' is not a point 'x,y' in px"),
        (b"1,2\nnan,1\n", "a_cyt.dat, line 2: 'nan,1' is not a point 'x,y' in px"),
        (b"1,2\n1,nan\n", "a_cyt.dat, line 2: '1,nan' is not a point 'x,y' in px"),
        (b"1,2\n1,1e999\n", "a_cyt.dat, line 2: '1,1e999' is not a point 'x,y' in px"),
        (b"1,2\n" + b"a" * 99, f"a_cyt.dat, line 2: '{'a' * 40}…' is not a point 'x,y' in px"),
        (b"\xff\xfe1\x00,\x002\x00", "a_cyt.dat is not text"),
        (b"90,1\n99,1\n99,9\n", "a_cyt.dat holds no pixel of its picture, 60 x 40 px"),
        (b"-9,-9\n-2,-9\n-2,-2\n", "a_cyt.dat holds no pixel of its picture, 60 x 40 px"),
        (b"1.2,1.2\n1.4,1.4\n1.6,1.6\n", "a_cyt.dat holds no pixel of its picture, 60 x 40 px"),
        (b"9,1\n1e300,1\n9,9\n", "a_cyt.dat, line 2: '1e300,1' is not a point 'x,y' in px"),
    ],
)
def test_what_is_no_outline_is_refused_with_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a_cyt.dat"
    file.write_bytes(content)
    for outlines in (Outlines(file, None), Outlines(write(tmp_path / "whole.dat", STAR), file)):
        with pytest.raises(InputError) as caught:
            outlines.parts(SIZE)
        assert str(caught.value) == message


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^a_cyt.dat cannot be read: No such file or directory$"):
        read_outline(tmp_path / "a_cyt.dat")
