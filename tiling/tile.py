"""`papsmear tile`: slides to tiles in shards, one slide a process.

    open_slide → overview → deposit → grid → tiles → shards + slide.json + overview.jpg

A slide's folder appears only when whole, so a run that was stopped goes on where it stopped. A slide that fails is
reported at the end and stops no other.
"""

import dataclasses
import json
import os
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import simplejpeg

from papsmear import __version__
from papsmear.cohort import Slide, read_slides
from papsmear.errors import InputError, UsageError
from papsmear.files import whole
from papsmear.progress import say, track
from papsmear.tiling.cut import TileSettings, iter_tiles, plan
from papsmear.tiling.deposit import Area
from papsmear.tiling.grid import draw
from papsmear.tiling.pool import each
from papsmear.tiling.reader import COARSEST_MPP, FINEST_MPP, SlideReader, open_slide
from papsmear.tiling.shards import ShardWriter, read_slide_json

OVERVIEW_QUALITY = 85


def tile(
    slides: Path,
    out: Path,
    area: Area = "disc",
    mpp: float | None = None,
    size_px: int = 320,
    tile_mpp: float = 0.5,
    quality: int = 90,
    workers: int | None = None,
) -> int:
    """Cuts slides into tiles and writes them as WebDataset shards, one folder a slide.

    A slide that is done already is left as it is, so a run that was stopped goes on where it stopped.

    Args:
        slides: The slides.csv.
        out: The folder that gets a folder for each slide: shards, slide.json, overview.jpg.
        area: What to tile: the round cell deposit of a liquid-based preparation, all tissue, or all of the slide.
        mpp: The slide's own µm/px, for files that do not tell it and have none in the column mpp of slides.csv.
        size_px: Side of a tile.
        tile_mpp: µm/px of the tiles.
        quality: JPEG quality of the tiles.
        workers: How many slides at a time; as many as there are processor cores if not given.
    """
    settings = TileSettings(area, size_px, tile_mpp, quality)
    if mpp is not None and not FINEST_MPP <= mpp <= COARSEST_MPP:
        raise UsageError(f"--mpp={mpp:g} is not the µm/px of a slide; {FINEST_MPP:g} to {COARSEST_MPP:g} is")
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise UsageError(f"--workers={workers}: at least 1 is needed")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: --out is a file; name a folder")
    jobs = [dataclasses.replace(slide, mpp=slide.mpp or mpp) for slide in read_slides(slides)]
    todo = [slide for slide in jobs if not _is_done(out / slide.slide_id, slide, settings)]
    tiles, failures = 0, {}
    try:
        work = partial(tile_slide, out=out, settings=settings)
        for slide, result in track(each(work, todo, workers), "slides", len(todo)):
            if isinstance(result, str):
                failures[slide.slide_id] = result
            else:
                tiles += result
    except BrokenProcessPool as error:
        raise InputError(
            f"{out}: a worker process was killed, often since memory ran out; start the command again with fewer"
            " --workers: it goes on from there"
        ) from error
    finally:
        for slide_id, reason in sorted(failures.items()):
            say(f"slide {slide_id} failed: {reason}")
    done = len(todo) - len(failures)
    say(f"{out}: {done} slides tiled ({tiles} tiles), {len(jobs) - len(todo)} done before, {len(failures)} failed")
    return 1 if failures else 0


def _is_done(folder: Path, slide: Slide, settings: TileSettings) -> bool:
    """Whether the slide is tiled already. UsageError where that was with other settings or from another file."""
    if not folder.exists():
        return False
    try:
        found = read_slide_json(folder)
    except InputError as error:
        raise UsageError(str(error)) from error
    now: dict[str, Any] = {**dataclasses.asdict(settings), "source": _source(slide.path)}
    before = {**found["settings"], "source": found.get("source")}
    if found.get("mpp_from") == "given":
        now["slide mpp"], before["slide mpp"] = slide.mpp, found.get("mpp")
    changed = [f"{name} {before.get(name)} instead of {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        raise UsageError(f"{folder}: made with {', '.join(changed)}; delete it or name another folder with --out")
    return True


def _source(path: Path) -> dict[str, Any]:
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    return {"name": path.name, "bytes": sum(file.stat().st_size for file in files)}


def tile_slide(slide: Slide, out: Path, settings: TileSettings) -> int | str:
    """Tiles one slide into `out`/<slide_id>; the number of tiles, or why the slide failed.

    A full disk is an OSError, since that stops the other slides too.
    """
    try:
        with open_slide(slide.path, slide.mpp) as reader, whole(out / slide.slide_id) as folder:
            return _write(reader, slide, settings, folder)
    except InputError as error:
        return " ".join(str(error).split())


def _write(reader: SlideReader, slide: Slide, settings: TileSettings, folder: Path) -> int:
    planned = plan(reader, settings)
    folder.mkdir()
    with ShardWriter(folder, slide.slide_id) as writer:
        for made in iter_tiles(reader, settings, planned):
            writer.write(made)
    picture = draw(planned.overview, planned.level0_px_per_px, planned.deposit, planned.xy_level0, planned.size_level0)
    (folder / "overview.jpg").write_bytes(simplejpeg.encode_jpeg(picture, OVERVIEW_QUALITY))
    levels = zip(reader.level_sizes, reader.level_downsamples, strict=True)
    content = {
        "slide_id": slide.slide_id,
        "papsmear": __version__,
        "source": _source(slide.path),
        "format": reader.format,
        "size_level0": list(reader.size_level0),
        "mpp": reader.mpp,
        "mpp_from": reader.mpp_from,
        "levels": [{"size_px": list(size), "downsample": round(down, 6)} for size, down in levels],
        "level_read": reader.level_for(settings.mpp),
        "deposit": planned.deposit.as_json(reader.mpp),
        "tile_size_level0": planned.size_level0,
        "counts": {"grid": planned.n_grid, "tiles": writer.n_tiles, "shards": writer.n_shards},
        "settings": dataclasses.asdict(settings),
    }
    lines = ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    (folder / "slide.json").write_text(f"{{\n {lines}\n}}\n", encoding="utf-8")
    return writer.n_tiles
