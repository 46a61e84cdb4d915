"""One slide to its folder of shards, slide.json and overview.jpg, as a worker process does it.

    open_planes → overview → deposit → grid → tiles → shards + slide.json + overview.jpg

The folder gets its name when all that is in it is on the disk.
"""

import dataclasses
import json
import os
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import simplejpeg

from papsmear import __version__
from papsmear.cohort import Slide
from papsmear.errors import InputError
from papsmear.files import part_of, remove, whole
from papsmear.tiling import failed
from papsmear.tiling.claim import claim
from papsmear.tiling.cut import Plan, TileSettings, iter_tiles, plan
from papsmear.tiling.deposit import DepositError
from papsmear.tiling.folder import OVERVIEW, SLIDE_JSON, source_of, why_tile
from papsmear.tiling.grid import draw
from papsmear.tiling.planes import Planes, open_planes
from papsmear.tiling.shards import ShardWriter

OVERVIEW_QUALITY = 85


@dataclass(frozen=True)
class Outcome:
    """What became of a slide; "elsewhere" is that another process is tiling it."""

    status: Literal["tiled", "done before", "failed", "elsewhere"]
    tiles: int = 0
    reason: str = ""


def tile_slide(slide: Slide, out: Path, settings: TileSettings, locks: bool = True) -> Outcome:
    """Tiles one slide into `out`/<slide_id>, unless another process has done so or is doing it.

    A full disk is an OSError, since that stops the other slides too.
    """
    folder = out / slide.slide_id
    with claim(folder) if locks else nullcontext(True) as mine:
        if not mine:
            return Outcome("elsewhere")
        remove(part_of(folder))
        if why_tile(folder, slide, settings) is None:
            failed.forget(out, slide.slide_id)
            return Outcome("done before")
        try:
            with open_planes(slide.path, slide.z_planes, slide.mpp, settings.reader) as planes, whole(folder) as part:
                tiles = _write(planes, slide, settings, part)
        except InputError as error:
            reason = " ".join(str(error).split())
            failed.leave(out, slide, reason, error if isinstance(error, DepositError) else None)
            return Outcome("failed", reason=reason)
        failed.forget(out, slide.slide_id)
        return Outcome("tiled", tiles)


def _write(planes: Planes, slide: Slide, settings: TileSettings, folder: Path) -> int:
    reader, dropped, focus, content = planes.middle, Counter[str](), list[float](), list[float]()
    planned = plan(reader, settings)
    folder.mkdir()
    with ShardWriter(folder, slide.slide_id) as writer:
        for made in iter_tiles(planes, settings, planned, dropped):
            writer.write(made)
            focus.append(made.focus)
            content.append(made.content)
    if not writer.n_tiles:
        counts = ", ".join(f"{n} for their {score}" for score, n in dropped.items())
        raise InputError(f"{reader.path}: all tiles are left out ({counts}); lower --min_focus or --min_content")
    picture = draw(planned.overview, planned.level0_px_per_px, planned.deposit, planned.xy_level0, planned.size_level0)
    _write_synced(folder / OVERVIEW, simplejpeg.encode_jpeg(picture, OVERVIEW_QUALITY))
    about = {
        "slide_id": slide.slide_id,
        "papsmear": __version__,
        "source": source_of(slide.path),
        **_about_slide(planes, settings, planned),
        "counts": {
            "grid": planned.n_grid,
            "tiles": writer.n_tiles,
            "shards": writer.n_shards,
            "dropped": dict(dropped),
        },
        "focus": {"median": round(median(focus), 3)},
        "content": {"median": round(median(content), 4)},
        "shards": writer.shards,
        "settings": dataclasses.asdict(settings),
    }
    lines = ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in about.items())
    _write_synced(folder / SLIDE_JSON, f"{{\n {lines}\n}}\n".encode())
    _sync(folder)
    return writer.n_tiles


def _about_slide(planes: Planes, settings: TileSettings, planned: Plan) -> dict[str, Any]:
    reader = planes.middle
    levels = zip(reader.level_sizes, reader.level_downsamples, strict=True)
    return {
        "format": reader.format,
        "size_level0": list(reader.size_level0),
        "mpp": reader.mpp,
        "mpp_from": reader.mpp_from,
        "levels": [{"size_px": list(size), "downsample": round(down, 6)} for size, down in levels],
        "reader": reader.engine,
        "downsample_read": round(reader.downsample_for(settings.mpp, planned.xy_level0, settings.size_px), 6),
        "z_um": list(planes.z_um),
        "deposit": planned.deposit.as_json(reader.mpp),
        "tile_size_level0": planned.size_level0,
    }


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Puts the names in a folder on the disk, before the folder gets its own."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
