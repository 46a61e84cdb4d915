"""Nearest-neighbour sheets and maps: what they show is what the features and the splits say."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from papsmear.probes.classes import HERLEV, SIPAKMED
from papsmear.probes.datasets import CellSet
from papsmear.probes.neighbour_sheets import MISTAKE, draw_sheet, find_sheet
from papsmear.probes.projection import class_colours, class_map, drawn_points, project, reduced
from papsmear.probes.splits import grouped_splits, source_pictures


def cell_set(pictures: bool = True, name: str = "mine") -> CellSet:
    """60 cells in five classes, each of its own grey; three cells a picture, where they are told."""
    labels = np.repeat(np.arange(5), 12)
    images = tuple(np.full((20, 30, 3), 10 + 3 * i, np.uint8) for i in range(60))
    groups = tuple(f"p{i // 3}" for i in range(60)) if pictures else ()
    return CellSet(name, SIPAKMED, tuple(map(str, range(60))), images, labels, {}, groups=groups)


def features(cells: CellSet, spread: float = 0.8) -> NDArray[np.float32]:
    generator = np.random.default_rng(1)
    n = len(cells.labels)
    return (generator.normal(size=(5, 6))[cells.labels] + spread * generator.normal(size=(n, 6))).astype(np.float32)


def test_neighbours_are_the_most_alike_of_the_training_part_and_of_other_pictures() -> None:
    cells = cell_set()
    x = features(cells)
    sheet = find_sheet(x, cells, 3)
    train, test = grouped_splits(cells.labels, source_pictures(cells), 1, 3)[0]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert sheet.grouped
    assert set(sheet.queries) <= set(test)
    for query, near, similarities in zip(sheet.queries, sheet.near, sheet.similarities, strict=True):
        assert list(near) == sorted(train, key=lambda i: -float(unit[i] @ unit[query]))[:8]
        np.testing.assert_allclose(similarities, unit[near] @ unit[query], atol=1e-6)
        assert cells.groups[query] not in {cells.groups[i] for i in near}


def test_queries_are_two_of_each_class_the_same_for_every_encoder() -> None:
    cells = cell_set(pictures=False)
    sheet = find_sheet(features(cells), cells, 0)
    assert not sheet.grouped
    assert np.bincount(cells.labels[sheet.queries]).tolist() == [2] * 5
    other = find_sheet(np.random.default_rng(5).normal(size=(60, 3)).astype(np.float32), cells, 0)
    assert other.queries.tolist() == sheet.queries.tolist()
    assert other.near.tolist() != sheet.near.tolist()
    assert find_sheet(features(cells), cells, 1).queries.tolist() != sheet.queries.tolist()


def test_mistakes_are_outlined_and_no_other() -> None:
    cells = cell_set()
    sheet = find_sheet(features(cells, spread=2), cells, 0)
    figure = draw_sheet(sheet, cells, "an encoder")
    (axes,) = figure.axes
    outlined = {
        (round((patch.get_y() + 1) / 120), round((patch.get_x() - 2) / 97)): patch
        for patch in axes.patches
        if isinstance(patch, Rectangle)
    }
    labels = cells.labels
    expected = set()
    for row, (query, near) in enumerate(zip(sheet.queries, sheet.near, strict=True)):
        expected |= {(row, column) for column, i in enumerate(near, 1) if labels[i] != labels[query]}
        told = labels[near].tolist()
        if max(told, key=lambda label: (told.count(label), -told.index(label))) != labels[query]:
            expected.add((row, 0))
    assert set(outlined) == expected
    assert any(column == 0 for _, column in expected)
    said = [text.get_text() for text in axes.texts]
    assert said[0] == SIPAKMED[labels[sheet.queries[0]]].short
    assert said[1] == f"{SIPAKMED[labels[sheet.near[0, 0]]].short}  {sheet.similarities[0, 0]:.2f}"
    assert all((text.get_color() == MISTAKE) == ((i // 9, i % 9) in expected) for i, text in enumerate(axes.texts))
    picture = axes.images[0].get_array()
    assert picture[45, 48, 0] == cells.images[sheet.queries[0]][0, 0, 0], "the query's own image, on its left"


def test_a_map_keeps_apart_what_features_keep_apart() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    x = (5 * generator.normal(size=(3, 80))[labels] + generator.normal(size=(120, 80))).astype(np.float32)
    places = project(x, 0)
    for i, place in enumerate(places):
        away = np.linalg.norm(places - place, axis=1)
        assert labels[np.argsort(away)[1]] == labels[i]
    np.testing.assert_array_equal(places, project(x, 0))


@pytest.mark.parametrize("shape", [(600, 900), (300, 40)])
def test_what_is_mapped_are_the_principal_components(shape: tuple[int, int]) -> None:
    """Many columns and few, against the whole decomposition; features of falling variance, as those of networks are."""
    x = np.random.default_rng(0).normal(size=shape) / np.arange(1, shape[1] + 1) ** 0.7
    left, roots, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    exact = left[:, :50] * roots[:50]
    ours = reduced(x, 0)
    assert ours.shape == exact.shape
    np.testing.assert_allclose(np.abs(ours[:, :5]), np.abs(exact[:, :5]), atol=0.01 * roots[0] / shape[0] ** 0.5)
    np.testing.assert_allclose(pdist(ours), pdist(exact), rtol=0.03)


@pytest.mark.parametrize("x", [np.ones((9, 4)), np.zeros((9, 4)), np.random.default_rng(0).normal(size=(3, 4))])
def test_a_map_of_nothing_to_tell_apart_is_one_point(x: NDArray[np.float64]) -> None:
    assert project(x.astype(np.float32), 0).tolist() == [[0, 0]] * len(x)


def test_a_map_of_four_cells_can_be_drawn() -> None:
    assert np.isfinite(project(np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32), 0)).all()


def test_points_are_drawn_in_proportion_and_none_is_drowned() -> None:
    points = drawn_points({"a": 9000, "b": 900, "c": 40}, 0, points=1000)
    assert {name: len(of) for name, of in points.items()} == {"a": 905, "b": 100, "c": 40}
    assert all(len(set(of)) == len(of) for of in points.values())
    assert {name: of.tolist() for name, of in drawn_points({"a": 3, "b": 2}, 0).items()} == {
        "a": [0, 1, 2],
        "b": [0, 1],
    }
    assert points["a"].tolist() == drawn_points({"a": 9000, "b": 900, "c": 40}, 0, points=1000)["a"].tolist()


def test_a_map_has_a_panel_by_set_and_one_of_each_set_by_class() -> None:
    sets = {"mine": cell_set(), "tiles": cell_set(name="tiles")}
    figure = class_map({"mine": features(sets["mine"]), "tiles": features(sets["tiles"]) + 1}, sets, "an encoder", 0)
    shown = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(shown) == ["by set", "mine, by class", "tiles, by class"]
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in shown.values()]
    assert legends == [["mine", "tiles"], ["D", "K", "M", "P", "SI"], ["D", "K", "M", "P", "SI"]]
    assert [len(c.get_offsets()) for c in shown["by set"].collections] == [60, 60]
    assert [len(c.get_offsets()) for c in shown["tiles, by class"].collections] == [60, 12, 12, 12, 12, 12]
    (alone,) = class_map({"mine": features(sets["mine"])}, {"mine": sets["mine"]}, "an encoder", 0).axes
    assert alone.get_title() == "mine, by class"
    assert len(set(class_colours(HERLEV))) == 7
