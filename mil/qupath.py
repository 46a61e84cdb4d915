"""Top tiles as a GeoJSON file that QuPath opens over the slide (drag the file onto the viewer)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from papsmear.page import RESEARCH_USE_ONLY


@dataclass(frozen=True)
class TopTile:
    """One of the tiles that a diagnosis rests on.

    Attributes:
        rank: 1 is the tile of the highest score.
        xy_level0: Its top-left corner in level-0 pixels.
        size_level0: Its side in level-0 pixels.
        score: The head's score of it, such as its attention.
        percentile: The share of the slide's tiles with a lower score, 0 to 100.
    """

    rank: int
    xy_level0: tuple[int, int]
    size_level0: float
    score: float
    percentile: float


def feature_collection(tiles: Sequence[TopTile], size_level0: tuple[int, int]) -> dict[str, Any]:
    """The tiles as QuPath annotations: closed rectangles in level-0 pixels, cut at the edge of the slide."""
    return {
        "type": "FeatureCollection",
        "research_use_only": RESEARCH_USE_ONLY,
        "features": [_feature(tile, size_level0) for tile in tiles],
    }


def _feature(tile: TopTile, size_level0: tuple[int, int]) -> dict[str, Any]:
    left, top = tile.xy_level0
    right = min(round(left + tile.size_level0, 2), size_level0[0])
    bottom = min(round(top + tile.size_level0, 2), size_level0[1])
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "annotation",
            "name": f"Top tile {tile.rank}",
            "classification": {"name": "Top tile", "color": [122, 62, 157]},
            "isLocked": True,
            "research_use_only": RESEARCH_USE_ONLY,
            # A list of pairs is what every QuPath from 0.2 on reads; a mapping only those from 0.4 on.
            "measurements": [
                {"name": "Rank", "value": tile.rank},
                {"name": "Score", "value": tile.score},
                {"name": "Percentile", "value": tile.percentile},
            ],
        },
    }
