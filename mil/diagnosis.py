"""A slide's diagnosis, and the files that it is written as: JSON, a page, a heat map, QuPath annotations.

A diagnosis is known by the slide's id alone. Nothing of the source goes into a file but that id, the size and scale of
the slide, and pictures of the specimen: no path, no label or macro picture, no date, no name. Each file says
that it is for research use only.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from papsmear import __version__
from papsmear.files import whole, write_text
from papsmear.mil.heatmap import draw_heatmap, legend_css
from papsmear.mil.qupath import TopTile, feature_collection
from papsmear.page import RESEARCH_USE_ONLY, picture_uri, render
from papsmear.tiling.reader import SlideReader

SUSPICIOUS, BELOW = "suspicious – review", "below operating point"
MEANING = {
    SUSPICIOUS: "At or above the operating point: have a cytologist look at the tiles below first.",
    BELOW: "Under the operating point. That is not a negative report: the model may have missed cells.",
}
VIEW_MPP = 0.25  # 40x, what cytologists read at
OVERVIEW_PX = 1400
BAR_UM = 20


@dataclass(frozen=True)
class Diagnosis:
    """What a model says of a slide.

    Attributes:
        slide_id: Letters, digits, `_`, `-`.
        probability: Of the slide holding abnormal cells, 0..1.
        operating_point: The probability from which on a slide is suspicious.
        size_level0: The slide's width and height in pixels of level 0.
        mpp: µm per pixel of level 0.
        tile_size_px: Side of the tiles that the encoder saw.
        tile_mpp: µm per pixel of those tiles.
        tile_size_level0: Their side in level-0 pixels.
        xy_level0: (N, 2) int32, their top-left corners.
        scores: (N,) float32, the head's score of each, such as its attention.
        model: Names and checksums of head and encoder.
        seen: The parts of the model ("encoder", "head") that were trained on a slide of this id.
    """

    slide_id: str
    probability: float
    operating_point: float
    size_level0: tuple[int, int]
    mpp: float
    tile_size_px: int
    tile_mpp: float
    tile_size_level0: float
    xy_level0: NDArray[np.int32]
    scores: NDArray[np.float32]
    model: dict[str, dict[str, str]]
    seen: tuple[str, ...] = ()

    @property
    def decision(self) -> str:
        """The operating point applied, in words."""
        return SUSPICIOUS if self.probability >= self.operating_point else BELOW

    def top_tiles(self, count: int = 10) -> list[TopTile]:
        """The tiles of the highest scores; of equal scores the first in grid order comes first."""
        below = np.searchsorted(np.sort(self.scores), self.scores)  # (N,), how many have a lower score
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [
            TopTile(
                rank=rank,
                xy_level0=(int(self.xy_level0[n, 0]), int(self.xy_level0[n, 1])),
                size_level0=self.tile_size_level0,
                score=float(self.scores[n]),
                percentile=100 * int(below[n]) / len(self.scores),
            )
            for rank, n in enumerate(order, start=1)
        ]

    def record(self) -> dict[str, Any]:
        """The diagnosis as it stands in the JSON file."""
        return {
            "slide_id": self.slide_id,
            "research_use_only": RESEARCH_USE_ONLY,
            "probability": self.probability,
            "decision": self.decision,
            "operating_point": self.operating_point,
            "model": self.model,
            "model_saw_this_slide_in_training": list(self.seen),
            "slide": {"size_level0": list(self.size_level0), "mpp": self.mpp},
            "tiles": {
                "count": len(self.scores),
                "size_px": self.tile_size_px,
                "mpp": self.tile_mpp,
                "size_level0": self.tile_size_level0,
            },
            "top_tiles": [asdict(tile) for tile in self.top_tiles()],
            "papsmear_version": __version__,
        }


def write_diagnosis(out: Path, diagnosis: Diagnosis, reader: SlideReader) -> None:
    """Writes `<slide_id>.json`, `.geojson`, `-heatmap.jpg` and, last, `.html` to the folder `out`.

    `reader` is the slide itself, for the overview and the top tiles at 40x.
    """
    stem = out / diagnosis.slide_id
    overview, level0_px_per_px = reader.overview(OVERVIEW_PX)
    heat = draw_heatmap(overview, level0_px_per_px, diagnosis.xy_level0, diagnosis.tile_size_level0, diagnosis.scores)
    _write_json(stem.with_suffix(".json"), diagnosis.record())
    _write_json(stem.with_suffix(".geojson"), feature_collection(diagnosis.top_tiles(), diagnosis.size_level0))
    with whole(out / f"{diagnosis.slide_id}-heatmap.jpg") as part:
        part.write_bytes(simplejpeg.encode_jpeg(heat, quality=88))
    write_text(stem.with_suffix(".html"), _page(diagnosis, reader, overview, heat, level0_px_per_px))


def _write_json(path: Path, record: dict[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _page(
    diagnosis: Diagnosis,
    reader: SlideReader,
    overview: NDArray[np.uint8],
    heat: NDArray[np.uint8],
    level0_px_per_px: float,
) -> str:
    field_um = diagnosis.tile_size_level0 * reader.mpp
    view_mpp = max(reader.mpp, VIEW_MPP)
    view_px = round(field_um / view_mpp)
    tops = diagnosis.top_tiles()
    tiles = [
        asdict(tile)
        | {
            "picture": picture_uri(reader.read(tile.xy_level0, view_px, view_mpp), quality=92),
            "score_text": f"{tile.score:.3g}",
        }
        for tile in tops
    ]
    return render(
        "mil/diagnose.html",
        d=diagnosis.record(),
        explained=MEANING[diagnosis.decision],
        warnings=_warnings(diagnosis),
        map=_map(tops, overview, heat, level0_px_per_px),
        legend=legend_css(),
        tiles=tiles,
        view_px=view_px,
        field_um=round(field_um),
        bar_um=BAR_UM,
        bar_percent=100 * BAR_UM / field_um,
        facts=_facts(diagnosis, view_mpp),
    )


def _warnings(diagnosis: Diagnosis) -> list[str]:
    warnings = []
    if diagnosis.seen:
        parts = " and ".join(diagnosis.seen)
        warnings.append(f"The {parts} of this model saw a slide of this id in training: the figures flatter it.")
    if len(diagnosis.scores) > 1 and np.ptp(diagnosis.scores) == 0:
        warnings.append("Every tile has the same score: the order of the tiles shown says nothing.")
    return warnings


def _map(
    tiles: list[TopTile],
    overview: NDArray[np.uint8],
    heat: NDArray[np.uint8],
    level0_px_per_px: float,
) -> dict[str, Any]:
    """The slide map: its pictures, and for each tile its square and where its number stands, in overview pixels."""
    height, width = overview.shape[:2]
    label = max(width, height) / 70
    pins = []
    for tile in tiles:
        x, y = (v / level0_px_per_px for v in tile.xy_level0)
        side = tile.size_level0 / level0_px_per_px
        pins.append(
            {
                "rank": tile.rank,
                "x": round(x, 2),
                "y": round(y, 2),
                "side": round(side, 2),
                "label_x": round(_beside(x, side, label, width), 2),
                "label_y": round(max(y - 0.4 * label, 1.1 * label), 2),
            }
        )
    pictures = {"overview": picture_uri(overview), "heat": picture_uri(heat)}
    return {"width": width, "height": height, "label": round(label, 2), "pins": pins, **pictures}


def _beside(x: float, side: float, label: float, width: int) -> float:
    """Where a number's centre stands: right of its square, or left of it at the right edge of the map."""
    right = x + side + 1.1 * label
    return right if right + 1.1 * label <= width else x - 1.1 * label


def _facts(diagnosis: Diagnosis, view_mpp: float) -> list[tuple[str, str]]:
    width, height = diagnosis.size_level0
    facts = [
        ("Slide", f"{width} × {height} px at {diagnosis.mpp:.4g} µm/px"),
        (
            "Tiles read by the model",
            f"{len(diagnosis.scores)} of {diagnosis.tile_size_px} px at {diagnosis.tile_mpp:.4g} µm/px",
        ),
        ("Tiles shown", f"at {view_mpp:.4g} µm/px"),
    ]
    for part, values in diagnosis.model.items():
        facts.append((part.capitalize(), ", ".join(f"{key} {value}" for key, value in values.items())))
    return [*facts, ("papsmear", __version__)]
