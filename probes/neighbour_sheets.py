"""Nearest-neighbour sheets: test cells and the eight training cells most like them, as one encoder sees them.

The queries are the same for every encoder: two test cells of each class, drawn once by the seed from the first split,
a split by source picture where there are such, so that no neighbour is the query's own picture.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from papsmear.probes.datasets import CellSet
from papsmear.probes.knn import Floats, Ints, neighbours, votes
from papsmear.probes.plots import INK, SOFT
from papsmear.probes.splits import grouped_splits, random_splits, source_pictures
from papsmear.seeds import rng

QUERIES_A_CLASS, NEIGHBOURS = 2, 8
MISTAKE = "#d1261e"
_CELL, _GAP, _ROW = 96, 26, 120  # px: a thumbnail, the gap after the query, a row with its words


@dataclass(frozen=True)
class Sheet:
    """Indices of the queries (Q,), of their neighbours (Q, 8), the most alike first, and their similarities (Q, 8)."""

    queries: Ints
    near: Ints
    similarities: Floats
    grouped: bool


def find_sheet(features: Floats, cells: CellSet, seed: int) -> Sheet:
    """The queries of a set and their neighbours in the training part, by features (N, D)."""
    grouped = grouped_splits(cells.labels, source_pictures(cells), 1, seed)
    train, test = (grouped or random_splits(cells.labels, 1, seed))[0]
    generator = rng(seed, "sheet", cells.name)
    queries = np.concatenate(
        [
            np.sort(generator.permutation(test[cells.labels[test] == label])[:QUERIES_A_CLASS])
            for label in range(len(cells.classes))
        ]
    )  # (Q,)
    found, similarities = neighbours(features[train], features[queries], min(NEIGHBOURS, len(train)))
    return Sheet(queries, train[found], similarities, bool(grouped))


def draw_sheet(sheet: Sheet, cells: CellSet, title: str) -> Figure:
    """A row for each query. Outlined are neighbours of another class, and queries that their neighbours vote wrong."""
    n, k = sheet.near.shape
    voted = votes(cells.labels[sheet.near], len(cells.classes))  # (Q,)
    picture = np.full((n * _ROW, _CELL * (k + 1) + _GAP, 3), 255, np.uint8)
    figure = Figure(figsize=(picture.shape[1] / 100, picture.shape[0] / 100 + 0.5), dpi=100)
    axes = figure.add_axes((0.01, 0, 0.98, picture.shape[0] / (picture.shape[0] + 50)))
    for row, (query, near) in enumerate(zip(sheet.queries, sheet.near, strict=True)):
        for column, cell in enumerate([query, *near]):
            x, y = column * _CELL + _GAP * (column > 0) + 3, row * _ROW
            picture[y : y + _CELL - 6, x : x + _CELL - 6] = thumbnail(cells.images[cell], _CELL - 6)
            wrong = (cells.labels[cell] if column else voted[row]) != cells.labels[query]
            told = cells.classes[cells.labels[cell]].short
            if column:
                told += f"  {sheet.similarities[row, column - 1]:.2f}"
            axes.text(
                x + (_CELL - 6) / 2, y + _CELL + 5, told, ha="center", va="center", fontsize=8,
                color=MISTAKE if wrong else SOFT if column else INK, weight="normal" if column else "bold",
            )  # fmt: skip
            if wrong:
                axes.add_patch(
                    Rectangle((x - 1, y - 1), _CELL - 4, _CELL - 4, fill=False, color=MISTAKE, linewidth=2.5)
                )
    axes.imshow(picture, interpolation="none")
    axes.set_xlim(0, picture.shape[1])
    axes.set_ylim(picture.shape[0], -4)
    axes.set_axis_off()
    figure.text(0.01, 1 - 0.25 / figure.get_figheight(), title, fontsize=10, color=INK, va="center")
    return figure


def thumbnail(rgb: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """The whole image, fitted into a white square (side_px, side_px, 3)."""
    height, width = rgb.shape[:2]
    scale = side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    square = np.full((side_px, side_px, 3), 255, np.uint8)
    top, left = (side_px - size[1]) // 2, (side_px - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = small
    return square
