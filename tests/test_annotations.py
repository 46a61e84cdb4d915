"""QuPath's GeoJSON: every form that it is exported in, every shape, and every way in which one is no cell."""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from papsmear.tiling.annotations import Problem, Shape, class_of, plain_names, read_annotations
from papsmear.tiling.phantom.cellkinds import CELL_KINDS

SQUARE = [[10, 20], [30, 20], [30, 50], [10, 50], [10, 20]]

# As QuPath 0.5 writes it: a rectangle with a derived class, an ellipse, two points, and an annotation without a class.
QUPATH = """{
  "type": "FeatureCollection",
  "features": [
    {
      "type": "Feature",
      "id": "0f6c3b5e-6a0f-4c4c-9a3a-0b1f0c6a7a11",
      "geometry": {
        "type": "Polygon",
        "coordinates": [
          [ [1200.5, 800], [1264, 800], [1264, 862.25], [1200.5, 862.25], [1200.5, 800] ]
        ]
      },
      "properties": {
        "objectType": "annotation",
        "name": "cell 1",
        "classification": { "name": "HSIL: p16", "color": [ 200, 0, 0 ] },
        "isLocked": true,
        "measurements": { "Area px^2": 3952.875, "Ratio": NaN }
      }
    },
    {
      "type": "Feature",
      "id": "5a8d",
      "geometry": {
        "type": "Polygon",
        "isEllipse": true,
        "coordinates": [
          [ [120, 100], [117.07, 107.07], [110, 110], [102.93, 107.07], [100, 100], [102.93, 92.93], [110, 90],
            [117.07, 92.93], [120, 100] ]
        ]
      },
      "properties": { "objectType": "annotation", "classification": { "names": [ "LSIL", "Koilocyte" ] } }
    },
    {
      "type": "Feature",
      "id": "77e1",
      "geometry": { "type": "MultiPoint", "coordinates": [ [1000.5, 2000.25], [3000, 4000] ] },
      "properties": { "objectType": "annotation", "classification": { "name": "Positive", "colorRGB": -377282 } }
    },
    {
      "type": "Feature",
      "id": "91aa",
      "geometry": { "type": "Point", "coordinates": [5, 6] },
      "properties": { "objectType": "annotation" }
    }
  ]
}
"""


def feature(kind: str, coordinates: Any, **more: Any) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": "HSIL"}}, **more}


def read(folder: Path, content: Any) -> tuple[list[Shape], list[Problem]]:
    file = folder / "a.geojson"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_annotations(file)


def test_what_qupath_writes(tmp_path: Path) -> None:
    shapes, problems = read(tmp_path, QUPATH)
    assert shapes == [
        Shape("0f6c3b5e-6a0f-4c4c-9a3a-0b1f0c6a7a11", ("HSIL", "p16"), (1200.5, 800, 1264, 862.25)),
        Shape("5a8d", ("LSIL", "Koilocyte"), (100, 90, 120, 110)),
        Shape("77e1", ("Positive",), (1000.5, 2000.25, 1000.5, 2000.25)),
        Shape("77e1", ("Positive",), (3000, 4000, 3000, 4000)),
    ]
    assert problems == [Problem("91aa", "no class")]


def test_a_collection_a_list_and_a_single_feature_plain_or_compressed(tmp_path: Path) -> None:
    one = feature("Polygon", [SQUARE], id="a")
    want: Any = ([Shape("a", ("HSIL",), (10, 20, 30, 50))], [])
    for content in ({"type": "FeatureCollection", "features": [one]}, [one], one):
        assert read(tmp_path, content) == want
    text = json.dumps([one])
    (tmp_path / "bom.geojson").write_text(text, encoding="utf-8-sig")
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(text.encode()))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.geojson", text)
    for name in ("bom.geojson", "a.geojson.gz", "a.zip"):
        assert read_annotations(tmp_path / name) == want


@pytest.mark.parametrize(
    ("classification", "parts"),
    [
        ({"name": "Tumor: Positive"}, ("Tumor", "Positive")),
        ({"names": ["Tumor", "Positive"]}, ("Tumor", "Positive")),
        ({"name": "Tumor", "colorRGB": -3670016}, ("Tumor",)),
        ("Tumor:Positive", ("Tumor", "Positive")),
        (["Tumor"], ("Tumor",)),
        ({"name": " : "}, None),
        ({"name": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_every_form_of_a_class(tmp_path: Path, classification: Any, parts: tuple[str, ...] | None) -> None:
    shapes, problems = read(tmp_path, feature("Point", [1, 2], properties={"classification": classification}))
    assert [shape.classification for shape in shapes] == ([parts] if parts else [])
    assert [problem.kind for problem in problems] == ([] if parts else ["no class"])


def test_parts_and_merged_annotations_are_cells_of_their_own(tmp_path: Path) -> None:
    hole = [[12, 22], [14, 22], [14, 24], [12, 22]]
    other = [[100, 100], [140, 100], [120, 130]]  # not closed, which others write
    shapes, problems = read(tmp_path, [feature("MultiPolygon", [[SQUARE, hole], [other]], id="m")])
    assert [shape.box_level0 for shape in shapes] == [(10, 20, 30, 50), (100, 100, 140, 130)]
    assert not problems


BOW_TIE = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]


@pytest.mark.parametrize(
    ("kind", "coordinates", "problem"),
    [
        ("Polygon", [[[0, 0], [5, 5], [0, 0]]], ("broken polygon", "fewer than 3 points")),
        ("Polygon", [[[0, 0], [5, 5], [5, 5], [0, 0], [0, 0]]], ("broken polygon", "fewer than 3 points")),
        ("Polygon", [[[3, 3], [3, 3], [3, 3], [3, 3]]], ("broken polygon", "fewer than 3 points")),
        ("Polygon", [BOW_TIE], ("broken polygon", "crosses itself")),
        ("Polygon", [[[0, 0], [9, 1], [1, 1], [8, 0], [4, 20], [0, 0]]], ("broken polygon", "crosses itself")),
        ("Polygon", [[[0, 0], [5.5, 5.5], [9, 9], [2, 2], [0, 0]]], ("broken polygon", "no area")),
        ("Polygon", [[[0, 0], [5, float("nan")], [9, 0], [0, 0]]], ("broken polygon", "not finite")),
        ("Polygon", [[[0, 0], [5, float("inf")], [9, 0], [0, 0]]], ("broken polygon", "not finite")),
        ("Polygon", [[[0, 0], [5, None], [9, 0], [0, 0]]], ("broken polygon", "not finite")),
        ("Polygon", [[[0, 0], [5, 1e300], [9, 0], [0, 0]]], ("broken polygon", "not finite")),
        ("Polygon", [[[0, 0], ["five", 5], [9, 0], [0, 0]]], ("broken polygon", "no numbers")),
        ("Polygon", [[[0, 0], [5], [9, 0], [0, 0]]], ("broken polygon", "no numbers")),
        ("Polygon", [[0, 1, 2]], ("broken polygon", "no list of x and y")),
        ("Polygon", [[]], ("broken polygon", "no list of x and y")),
        ("Polygon", [], ("broken polygon", "")),
        ("Polygon", None, ("broken polygon", "")),
        ("MultiPolygon", [[BOW_TIE]], ("broken polygon", "crosses itself")),
        ("MultiPolygon", 5, ("broken polygon", "")),
        ("Point", [1], ("broken point", "")),
        ("Point", [1, float("nan")], ("broken point", "not finite")),
        ("Point", None, ("broken point", "")),
        ("MultiPoint", [["a", "b"]], ("broken point", "no numbers")),
        ("LineString", [[0, 0], [5, 5]], ("unsupported shape", "LineString")),
        ("MultiLineString", [[[0, 0], [5, 5]]], ("unsupported shape", "MultiLineString")),
        ("Circle", [0, 0], ("unsupported shape", "Circle")),
    ],
)
def test_shapes_that_are_no_cell(tmp_path: Path, kind: str, coordinates: Any, problem: tuple[str, str]) -> None:
    good = feature("Polygon", [SQUARE], id="good")
    shapes, problems = read(tmp_path, [feature(kind, coordinates, id="bad"), good])
    assert [shape.feature for shape in shapes] == ["good"]
    assert [(p.feature, p.kind) for p in problems] == [("bad", problem[0])]
    assert problem[1] in problems[0].detail
    assert problems[0].detail in problems[0].reason


def test_a_broken_part_does_not_cost_the_others(tmp_path: Path) -> None:
    shapes, problems = read(tmp_path, feature("MultiPolygon", [[BOW_TIE], [SQUARE]], id="m"))
    assert [(len(shapes), len(problems)), shapes[0].box_level0] == [(1, 1), (10, 20, 30, 50)]


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ({**feature("Point", [1, 2]), "geometry": None}, "unsupported shape"),
        ({"type": "Feature", "properties": {"classification": {"name": "HSIL"}}}, "unsupported shape"),
        (
            {
                **feature("GeometryCollection", None),
                "geometry": {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 2]}]},
            },
            "unsupported shape",
        ),
        ({**feature("Point", [1, 2]), "properties": None}, "no class"),
        ({"type": "Polygon", "coordinates": [SQUARE]}, "not a feature"),
        (None, "not a feature"),
        ([], "not a feature"),
    ],
)
def test_features_without_what_makes_a_cell(tmp_path: Path, item: Any, kind: str) -> None:
    shapes, problems = read(tmp_path, [item])
    assert not shapes
    assert [(p.feature, p.kind) for p in problems] == [("#1", kind)]


def test_a_feature_is_named_by_its_id_or_its_place(tmp_path: Path) -> None:
    ids = ["PathAnnotationObject", "", None, 7, "own"]  # the first is what QuPath 0.2 wrote for all
    shapes, _ = read(tmp_path, [feature("Point", [1, 2], id=own) for own in ids] + [feature("Point", [1, 2])])
    assert [shape.feature for shape in shapes] == ["#1", "#2", "#3", "7", "own", "#6"]


@pytest.mark.parametrize(
    "content", ["", "{", '{"type": "Topology"}', "5", '{"type": "FeatureCollection"}', "PK no zip", '"text"']
)
def test_a_file_that_is_none(tmp_path: Path, content: str) -> None:
    shapes, problems = read(tmp_path, content)
    assert not shapes
    assert [(p.feature, p.kind) for p in problems] == [("", "unreadable annotation file")]
    assert problems[0].detail
    assert "\n" not in problems[0].detail


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(QUPATH.encode())[:100])
    (tmp_path / "latin.geojson").write_bytes('{"type": "Fébruary"}'.encode("latin-1"))
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    for name in ("cut.gz", "latin.geojson", "empty.zip", "missing.geojson"):
        shapes, problems = read_annotations(tmp_path / name)
        assert not shapes
        assert [p.kind for p in problems] == ["unreadable annotation file"]
    assert "No such file" in problems[0].detail


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=3, max_size=9))
def test_crossing_sides_are_found_as_by_comparing_all_pairs(points: list[tuple[int, int]]) -> None:
    from papsmear.tiling.annotations import _crosses_itself

    ring = [p for p, before in zip(points, [points[-1], *points[:-1]], strict=True) if p != before]
    if not ring:
        return
    sides = list(zip(ring, [*ring[1:], ring[0]], strict=True))

    def turn(a: Any, b: Any, c: Any) -> int:
        return int(np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])))

    crossing = any(
        turn(*one, other[0]) * turn(*one, other[1]) < 0 and turn(*other, one[0]) * turn(*other, one[1]) < 0
        for one in sides
        for other in sides
    )
    assert _crosses_itself(np.array(ring, float)) == crossing


def test_a_long_outline_is_checked_in_a_moment() -> None:
    from papsmear.tiling.annotations import _crosses_itself

    angle = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (500 + 20 * np.cos(40 * angle))[:, None]
    assert not _crosses_itself(ring)
    ring[[5000, 15000]] = ring[[15000, 5000]]
    assert _crosses_itself(ring)


CLASSES = ("HSIL", "HSIL: p16-", "ASC-US", "moderate_dysplastic", "Tumor: Positive", "Ignore*", "p16+")


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (("HSIL",), "HSIL"),
        (("hsil",), "HSIL"),
        (("HSIL", "p16+"), "HSIL"),
        (("HSIL", "p16-"), "HSIL: p16-"),
        (("HSIL", "p16-", "sure"), "HSIL: p16-"),
        (("asc us",), "ASC-US"),
        (("Moderate dysplastic",), "moderate_dysplastic"),
        (("Tumor", "positive"), "Tumor: Positive"),
        (("Tumor",), None),
        (("Positive", "Tumor"), None),
        (("Not HSIL",), None),
        (("HSIL?",), None),
        (("p16-",), None),
        (("Ignore*",), "Ignore*"),
        (("Ignore",), None),
    ],
)
def test_classes_are_matched_by_full_name_then_by_their_first_parts(parts: tuple[str, ...], found: str | None) -> None:
    assert class_of(parts, CLASSES) == found


def test_spellings_of_one_name() -> None:
    assert len(plain_names(["ASC-US", "asc_us", "ASC  US", "Tumor:Positive", "tumor : positive"])) == 2


def test_a_configuration_names_every_class_of_the_phantoms_and_public_sets(root: Path) -> None:
    classes = yaml.safe_load((root / "configs" / "crop.yaml").read_text())["classes"]
    negative = {"superficiel", "intermediate", "columnar", "parabasal", "im_superficial-intermediate"}
    for kind in CELL_KINDS:
        side = classes[class_of((kind,), classes)]
        is_negative = any(kind.lower().endswith(name) for name in negative)
        assert side == ("ignore" if "Metaplastic" in kind else "negative" if is_negative else "positive"), kind
