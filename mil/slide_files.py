"""The files of a slide's diagnosis: a page, a heat map, QuPath annotations, and JSON.

A diagnosis is known by the slide's id alone. Nothing of the source goes into a file but that id, the size, scale and
checksums of the slide, and pictures of the specimen: no path, no label or macro picture, no date, no name. Each
file says that it is for research use only.
"""

import json
from pathlib import Path
from typing import Any

from papsmear.files import remove, whole, write_text
from papsmear.mil.diagnosis import Diagnosis
from papsmear.mil.heatmap import draw_heatmap, signed_jpeg
from papsmear.mil.qupath import feature_collection
from papsmear.mil.slide_page import slide_page
from papsmear.tiling.reader import SlideReader

OVERVIEW_PX = 1400
ENDINGS = (".html", "-heatmap.jpg", ".geojson", ".json")  # in the order of writing: the last says that all are there


def write_diagnosis(out: Path, diagnosis: Diagnosis, reader: SlideReader) -> None:
    """Writes the files of a diagnosis to the folder `out`; of a slide that cannot be judged a page and JSON only.

    `reader` is the slide itself, for the overview and the top tiles at 40x.
    """
    forget(out, diagnosis.slide_id)
    page, heatmap, geojson, record = files_of(out, diagnosis.slide_id)
    overview, level0_px_per_px = reader.overview(OVERVIEW_PX)
    heat = draw_heatmap(overview, level0_px_per_px, diagnosis.xy_level0, diagnosis.tile_size_level0, diagnosis.scores)
    write_text(page, slide_page(diagnosis, reader, overview, heat, level0_px_per_px))
    if diagnosis.probability is not None:
        with whole(heatmap) as part:
            part.write_bytes(signed_jpeg(heat))
        _write_json(geojson, feature_collection(diagnosis.top_tiles(), diagnosis.size_level0))
    _write_json(record, diagnosis.record())


def files_of(out: Path, slide_id: str) -> list[Path]:
    """The files of a slide's diagnosis, in the order of `ENDINGS`."""
    return [out / f"{slide_id}{ending}" for ending in ENDINGS]


def forget(out: Path, slide_id: str) -> None:
    """Removes an earlier diagnosis, JSON first: where that is, all the others are."""
    for file in reversed(files_of(out, slide_id)):
        remove(file)


def read_record(out: Path, slide_id: str) -> dict[str, Any] | None:
    """What the JSON file of a diagnosis says; None where there is none, or it is damaged."""
    try:
        record = json.loads(files_of(out, slide_id)[-1].read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _write_json(path: Path, record: dict[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
