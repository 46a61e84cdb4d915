"""The page of a slide's diagnosis: the result, the slide map, and the tiles of the highest score at 40x."""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from papsmear import __version__
from papsmear.mil.diagnosis import BELOW, NOT_ASSESSABLE, SUSPICIOUS, Diagnosis
from papsmear.mil.heatmap import legend_css
from papsmear.mil.qupath import TopTile
from papsmear.page import picture_uri, render
from papsmear.tiling.reader import SlideReader

MEANING = {
    SUSPICIOUS: "At or above the operating point: have a cytologist look at the tiles below first.",
    BELOW: "Under the operating point. That is not a negative report: the model may have missed cells.",
    NOT_ASSESSABLE: "The model gives no figure for this slide. That is not a negative report: have it read, or prepared"
    " or scanned again.",
}
VIEW_MPP = 0.25  # 40x, what cytologists read at
BAR_UM = 20


def slide_page(
    diagnosis: Diagnosis,
    reader: SlideReader,
    overview: NDArray[np.uint8],
    heat: NDArray[np.uint8],
    level0_px_per_px: float,
) -> str:
    """The page as HTML.

    Args:
        diagnosis: What to show.
        reader: The slide itself, for its tiles.
        overview: (H, W, 3) picture of the whole slide.
        heat: (H, W, 3) the same with the heat map over it.
        level0_px_per_px: How many level-0 pixels one of their pixels spans.
    """
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
    pictures = {"overview": picture_uri(overview), "heat": picture_uri(heat) if tiles else None}
    return {"width": width, "height": height, "label": round(label, 2), "pins": pins, **pictures}


def _beside(x: float, side: float, label: float, width: int) -> float:
    """Where a number's centre stands: right of its square, or left of it at the right edge of the map."""
    right = x + side + 1.1 * label
    return right if right + 1.1 * label <= width else x - 1.1 * label


def _facts(diagnosis: Diagnosis, view_mpp: float) -> list[tuple[str, str]]:
    width, height = diagnosis.size_level0
    measured, limits, tiles = diagnosis.measured, diagnosis.limits, diagnosis.tiles
    facts = [("Slide", f"{width} × {height} px at {diagnosis.mpp:.4g} µm/px")]
    if "sha256" in diagnosis.source:
        facts.append(("Slide file", f"{diagnosis.source['bytes']} bytes, sha256 {diagnosis.source['sha256']}"))
    facts.append(
        (
            "Tiles read by the model",
            f"{measured.tiles} of {tiles.size_px} px at {tiles.mpp:.4g} µm/px (at least {limits.tiles} are needed)",
        )
    )
    for name, found, limit, side in (
        ("Sharpness", measured.focus, limits.focus, "least"),
        ("Distance from the training slides", measured.distance, limits.distance, "most"),
        ("Distance of its light from theirs", measured.light, limits.light, "most"),
        ("Distance of its stain from theirs", measured.stain, limits.stain, "most"),
    ):
        if found is not None:
            within = "the model does not say what it was trained on" if limit is None else f"at {side} {limit:.3g}"
            facts.append((name, f"{found:.3g} ({within})"))
    if diagnosis.scores.size:
        facts.append(("Tiles shown", f"at {view_mpp:.4g} µm/px"))
    for part, values in diagnosis.model.items():
        facts.append((part.capitalize(), ", ".join(f"{key} {value}" for key, value in values.items())))
    return [*facts, ("papsmear", __version__)]
