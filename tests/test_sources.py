"""Sets of one's own: plain class folders, VOC boxes and csv lists, with class maps that are data."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from papsmear.errors import UsageError
from papsmear.probes.classes import SETS, TITLES, PublicSet, Side
from papsmear.probes.datasets import CellSet, read_cells, read_set
from papsmear.probes.sources import SetSource
from papsmear.probes.splits import source_pictures
from papsmear.probes.voc import square


def save(path: Path, value: int = 100, size: tuple[int, int] = (9, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)


def sides(cells: CellSet) -> dict[str, tuple[str, int]]:
    return {c.name: (c.side, n) for c, n in zip(cells.classes, cells.counts(), strict=True)}


# --- class folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for label, name in enumerate(("NILM", "LSIL", "glandular_cells")):
        for i in range(2 + label):
            save(tmp_path / "set" / name / "part" / f"{i}.png", 10 * label)
            save(tmp_path / "set" / "masks" / name / "part" / f"{i}.png", 255)
    return tmp_path / "set"


def test_a_map_gives_folders_their_sides_whatever_their_capitals_and_signs(folders: Path) -> None:
    cells = read_cells("mine", SetSource(folders, classes={"lsil": "positive", "Glandular cells": "neither",
                                                           "nilm": "negative", "not there": "positive"}))  # fmt: skip
    assert sides(cells) == {"lsil": ("positive", 3), "Glandular cells": ("neither", 4), "nilm": ("negative", 2)}
    assert [int(image[0, 0, 0]) for image in cells.images] == [10] * 3 + [20] * 4 + [0] * 2
    assert cells.title == "mine"
    assert cells.published_cells is None
    assert cells.masks[0] == folders / "masks" / "LSIL" / "part" / "0.png"


def test_without_a_map_no_class_has_a_side(folders: Path) -> None:
    assert set(sides(read_cells("mine", folders)).values()) == {("neither", 2), ("neither", 3), ("neither", 4)}


def test_a_class_that_the_map_leaves_out_is_refused(folders: Path) -> None:
    with pytest.raises(UsageError, match=r"set: classes do not tell the side of 'NILM', 'glandular_cells'; add NILM: "):
        read_cells("mine", SetSource(folders, classes={"LSIL": "positive"}))
    with pytest.raises(UsageError, match="herlev: Herlev has its own classes and layout; call your set otherwise"):
        read_cells("herlev", SetSource(folders, classes={"LSIL": "positive"}))
    (folders.parent / "empty").mkdir()
    with pytest.raises(UsageError, match="empty: no images in it; it wants a folder for each class"):
        read_cells("mine", folders.parent / "empty")


def test_the_native_scale_is_known_unless_all_cells_were_brought_to_one_size(tmp_path: Path) -> None:
    for name in ("light_dysplastic", "normal_columnar"):
        for i in range(2):
            save(tmp_path / "native" / name / f"{i}.BMP", size=(9 + i, 7))
            save(tmp_path / "resized" / name / f"{i}.BMP", size=(20, 20))
    assert read_cells("herlev", tmp_path / "native").mpp == (0.201,) * 4
    assert read_cells("herlev", tmp_path / "resized").mpp == ()
    assert read_cells("herlev", SetSource(tmp_path / "resized", mpp=0.4)).mpp == (0.4,) * 4


# --- VOC boxes ----------------------------------------------------------------------------------------------------


def voc(folder: Path, name: str, boxes: list[tuple[str, Any]], size: tuple[int, int] = (60, 40)) -> None:
    """A picture in which each pixel tells its place, red x and green y, and its boxes, as VOC counts them."""
    y, x = np.mgrid[: size[1], : size[0]]
    (folder / "JPEGImages").mkdir(parents=True, exist_ok=True)
    (folder / "Annotations").mkdir(exist_ok=True)
    rgb = np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8)
    Image.fromarray(rgb).save(folder / "JPEGImages" / f"{name}.png")
    edges = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><name>{kind}</name><bndbox>"
        + "".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(edges, box, strict=True))
        + "</bndbox></object>"
        for kind, box in boxes
    )
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")


def test_boxes_are_cut_out_as_squares_and_grouped_by_patient(tmp_path: Path) -> None:
    voc(tmp_path, "P_07_1", [("LSIL", (11, 6, 30, 15)), ("HSIL", (1, 1, 6, 10))])
    voc(tmp_path, "P_07_2", [("LSIL", (51, 31, 60, 40))])
    voc(tmp_path, "P_08_1", [("HSIL", (21, 11, 30, 20))])
    cells = read_cells("boxes", SetSource(tmp_path, classes={"LSIL": "positive", "HSIL": "positive"}))
    assert sides(cells) == {"LSIL": ("positive", 2), "HSIL": ("positive", 2)}
    assert cells.paths == tuple(f"JPEGImages/P_{name}" for name in
                                ("07_1.png#0", "07_2.png#0", "07_1.png#1", "08_1.png#0"))  # fmt: skip
    spans = [(i[0, 0, 0], i[0, -1, 0], i[0, 0, 1], i[-1, 0, 1]) for i in cells.images]
    assert spans == [(10, 29, 0, 19), (50, 59, 30, 39), (0, 9, 0, 9), (20, 29, 10, 19)], "x from, to, y from, to"
    assert cells.groups == ("P_07", "P_07", "P_07", "P_08")
    assert source_pictures(cells).tolist() == [0, 0, 0, 1]  # type: ignore[union-attr]


def test_boxes_and_pictures_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    voc(tmp_path, "a_1", [("x", (1, 1, 9, 9)), ("x", (9, 1, 9, 9)), ("x", ("", 1, 9, 9)), ("x", (91, 1, 99, 9))])
    voc(tmp_path, "a_2", [("y", (1, 1, 9, 9))])
    voc(tmp_path, "a_3", [("y", (1, 1, 9, 9))])
    voc(tmp_path, "a_5", [("y", (1, 1, 9, 9))])
    save(tmp_path / "other" / "a_5.jpg")
    (tmp_path / "Annotations" / "._a_1.xml").write_bytes(b"what a Mac leaves")
    (tmp_path / "JPEGImages" / "a_2.png").write_bytes(b"no picture")
    (tmp_path / "JPEGImages" / "a_3.png").unlink()
    (tmp_path / "Annotations" / "a_4.xml").write_text("<annotation><object>")
    cells = read_set("boxes", tmp_path)
    assert cells.counts() == [1]
    assert cells.damaged == {
        "Annotations/a_1.xml#1": "its box is no left, top, right and bottom edge",
        "Annotations/a_1.xml#2": "its box is no left, top, right and bottom edge",
        "Annotations/a_3.xml": "there are 0 pictures called a_3",
        "Annotations/a_4.xml": cells.damaged["Annotations/a_4.xml"],
        "Annotations/a_5.xml": "there are 2 pictures called a_5",
        "JPEGImages/a_1.png#3": "its box is outside the picture of 60 x 40 px",
        "JPEGImages/a_2.png": "not an image",
    }
    assert cells.damaged["Annotations/a_4.xml"].startswith("not an XML file")


def test_every_hmchh_box_is_positive_whatever_it_is_called(tmp_path: Path) -> None:
    voc(tmp_path, "12_3", [("ASC-US", (1, 1, 9, 9)), ("abnormal", (1, 1, 9, 9))])
    assert sides(read_set("hmchh", tmp_path)) == {"abnormal": ("positive", 2)}
    with pytest.raises(UsageError, match="only the class 'abnormal' is in it"):
        read_cells("hmchh", tmp_path)


def test_a_square_is_moved_onto_the_picture_and_never_larger_than_it() -> None:
    assert square((0, 0, 10, 4), 40, 30) == (slice(0, 10), slice(0, 10))
    assert square((35, 20, 40, 30), 40, 30) == (slice(20, 30), slice(30, 40))
    assert square((0, 0, 40, 8), 40, 30) == (slice(0, 30), slice(5, 35))


# --- csv ----------------------------------------------------------------------------------------------------------


def write_csv(file: Path, rows: list[dict[str, Any]]) -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def test_a_csv_tells_class_side_slide_fold_and_scale(tmp_path: Path) -> None:
    rows = [
        {"file": f"cells/{i}.png", "slide_id": f"s{i // 2}", "fold": i // 4 if i < 8 else "",
         "class": ("HSIL", "NILM", "odd")[i % 3], "label": (1, 0, "")[i % 3], "mpp": 0.5 if i else ""}
        for i in range(9)
    ]  # fmt: skip
    for row in rows:
        save(tmp_path / row["file"])
    cells = read_cells("cells", write_csv(tmp_path / "cells.csv", rows))
    assert sides(cells) == {"HSIL": ("positive", 3), "NILM": ("negative", 3), "odd": ("neither", 3)}
    assert cells.paths[:3] == ("cells/0.png", "cells/3.png", "cells/6.png")
    assert cells.slides[:3] == cells.groups[:3] == ("s0", "s1", "s3")
    assert (cells.folds[:3], cells.folds[-1], cells.mpp[:2]) == ((0, 0, 1), None, (None, 0.5))
    given: dict[str, Side] = {"NILM": "negative", "HSIL": "positive", "odd": "positive"}
    mapped = read_cells("cells", SetSource(tmp_path / "cells.csv", mpp=0.25, classes=given))
    assert [c.side for c in mapped.classes] == ["negative", "positive", "positive"]
    assert Counter(mapped.mpp) == {0.5: 8, 0.25: 1}


def test_a_label_alone_makes_two_classes_and_a_group_wins_over_the_slide(tmp_path: Path) -> None:
    rows = [{"file": f"{i}.png", "label": i % 2, "slide_id": f"s{i}", "group": "p"} for i in range(4)]
    for row in rows:
        save(tmp_path / row["file"])
    cells = read_cells("x", write_csv(tmp_path / "x.csv", rows))
    assert sides(cells) == {"positive": ("positive", 2), "negative": ("negative", 2)}
    assert set(cells.groups) == {"p"}
    assert set(cells.slides) == {"s0", "s1", "s2", "s3"}
    elsewhere = [{"file": str(tmp_path / row["file"]), "label": row["label"]} for row in rows]
    (tmp_path / "list").mkdir()
    read = read_cells("x", write_csv(tmp_path / "list" / "x.csv", elsewhere))
    assert read.paths[0] == f"{tmp_path.name}/1.png", "no path of the machine"
    (tmp_path / "0.png").unlink()
    (tmp_path / "3.png").write_bytes(b"")
    damaged = {"0.png": "no such file", "3.png": "the file is empty"}
    assert read_set("x", tmp_path / "x.csv").damaged == damaged


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"label": "1"}, r"x\.csv: column 'file' is missing; the header has: label"),
        ({"file": "a.png"}, r"column 'class' or 'label' is missing"),
        ({"file": "a.png", "label": "2"}, r"line 2: label '2' is not 0, 1 or empty"),
        ({"file": "", "label": "1"}, r"line 2: file is empty"),
        ({"file": "a.png", "class": ""}, r"line 2: class is empty"),
        ({"file": "a.png", "class": "x", "fold": "-1"}, r"line 2: fold '-1' is not a whole number"),
        ({"file": "a.png", "class": "x", "mpp": "0"}, r"line 2: mpp '0' is not a number of µm/px"),
    ],
)
def test_a_csv_that_is_wrong_is_refused_with_its_line(tmp_path: Path, row: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_set("x", write_csv(tmp_path / "x.csv", [row]))


def test_a_class_with_two_labels_an_empty_csv_and_none_are_refused(tmp_path: Path) -> None:
    rows = [{"file": "a.png", "class": "x", "label": n} for n in (0, 1)]
    with pytest.raises(UsageError, match="class 'x' is labelled negative and positive"):
        read_set("x", write_csv(tmp_path / "x.csv", rows))
    (tmp_path / "y.csv").write_text("file,label\n")
    with pytest.raises(UsageError, match="there are no cells in it"):
        read_set("y", tmp_path / "y.csv")
    with pytest.raises(UsageError, match="no such file; the set z wants a folder or a csv"):
        read_set("z", tmp_path / "z.csv")


# --- public sets are data -----------------------------------------------------------------------------------------


def test_a_new_public_set_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = [{"name": f"class {n}", "short": n, "side": side, "folder": f"(the)?{n}", "cells": 2}
               for n, side in (("a", "positive"), ("b", "negative"))]  # fmt: skip
    told = {
        "title": "New",
        "source": "Somebody",
        "kind": "folders",
        "mpp": 0.3,
        "picture": r"(\d)\d",
        "classes": classes,
    }
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(told))
    monkeypatch.setitem(SETS, "new", PublicSet.from_yaml(tmp_path / "new.yaml"))
    for name in ("The-A", "b"):
        for i in range(2):
            save(tmp_path / "set" / name / f"1{i}.png", size=(8 + i, 8))
    cells = read_cells("new", tmp_path / "set")
    assert (cells.title, cells.published_cells, cells.counts(), cells.mpp[0]) == ("New", 4, [2, 2], 0.3)
    assert source_pictures(cells).tolist() == [0] * 4  # type: ignore[union-attr]


def test_the_public_sets_have_the_canonical_counts() -> None:
    assert TITLES == {"herlev": "Herlev", "hmchh": "HMCHH-TCT-CellDet", "sipakmed": "SIPaKMeD"}
    assert {name: sum(known.cells) for name, known in SETS.items()} == {"herlev": 917, "hmchh": 15761, "sipakmed": 4049}
    assert SETS["herlev"].cells == (150, 182, 146, 197, 98, 70, 74)
