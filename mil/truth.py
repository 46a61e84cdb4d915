"""Tiles against the truth: which of them hold an annotated abnormal cell.

A: annotated cells. N: tiles.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from papsmear.errors import InputError


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
