"""Tiles against the truth: which of them hold an annotated abnormal cell.

A: annotated cells. N: tiles.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from papsmear.errors import InputError
from papsmear.tiling.annotations import class_of, read_annotations

# Classes of annotated cells that are not abnormal, as in configs/crop.yaml; all others are.
NOT_ABNORMAL = (
    *("NILM", "Negative", "Ignore*", "Region*", "im_Metaplastic", "Metaplastic"),
    *("normal_columnar", "normal_intermediate", "normal_superficiel"),
    *("im_Parabasal", "im_Superficial-Intermediate", "Parabasal", "Superficial-Intermediate"),
)
TOPS = (10, 20)


@dataclass(frozen=True)
class TopTiles:
    """The `top` tiles of highest score of each of some slides: how many hold an abnormal cell, and would by chance."""

    top: int
    slides: int
    tiles: int
    hits: int
    by_chance: float

    @property
    def share(self) -> float:
        """The share of these tiles that hold an abnormal cell."""
        return self.hits / self.tiles

    @classmethod
    def together(cls, parts: "Sequence[TopTiles]") -> "TopTiles":
        """Those of several sets of slides as one."""
        told = [(part.slides, part.tiles, part.hits, part.by_chance) for part in parts]
        slides, tiles, hits, by_chance = (sum(column) for column in zip(*told, strict=True))
        return cls(parts[0].top, int(slides), int(tiles), int(hits), by_chance)


def top_tiles(
    ranked: ArrayLike, xy_level0: NDArray[np.int32], size_level0: float, cells_xy_level0: NDArray[np.float64]
) -> list[TopTiles]:
    """For each of `TOPS` how many tiles of a slide hold a cell (A, 2); `ranked` (at most N,): highest score first."""
    holds = hold_a_cell(xy_level0, size_level0, cells_xy_level0)  # (N,)
    order = np.asarray(ranked, int)
    found = []
    for top in TOPS:
        hits = holds[order[:top]]
        found.append(TopTiles(top, 1, len(hits), int(hits.sum()), float(len(hits) * holds.mean())))
    return found


def abnormal_cells(file: Path) -> NDArray[np.float64]:
    """(A, 2) middles, in level-0 pixels, of the abnormal cells that QuPath exported; InputError for a broken file."""
    shapes, problems = read_annotations(file)
    unreadable = [problem.reason for problem in problems if not problem.feature]
    if unreadable:
        raise InputError(f"{file}: {unreadable[0]}; export the objects from QuPath again")
    boxes = [shape.box_level0 for shape in shapes if class_of(shape.classification, NOT_ABNORMAL) is None]
    return np.asarray(np.array(boxes, float).reshape(-1, 2, 2).mean(axis=1))


def read_cells(file: Path) -> NDArray[np.float64]:
    """(A, 2) middles, in level-0 pixels, of the polygons in a QuPath GeoJSON; InputError where it is none."""
    try:
        features = json.loads(file.read_text(encoding="utf-8"))["features"]
        rings = [np.asarray(feature["geometry"]["coordinates"][0], float) for feature in features]
        middles = [(ring.min(axis=0) + ring.max(axis=0)) / 2 for ring in rings]
        return np.array(middles, float).reshape(-1, 2)
    except OSError as error:
        raise InputError(f"{file}: cannot read the annotations: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{file}: not polygons in QuPath's GeoJSON ({error!r}); export them again") from error


def hold_a_cell(xy_level0: ArrayLike, size_level0: float, cells_xy_level0: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the tiles, top-left corners (N, 2), hold the middle of a cell (A, 2); (N,)."""
    offset = cells_xy_level0[None] - np.asarray(xy_level0, float).reshape(-1, 2)[:, None]  # (N, A, 2)
    return np.asarray(((offset >= 0) & (offset < size_level0)).all(axis=2).any(axis=1))
