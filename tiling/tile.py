"""`papsmear tile`: slides to tiles in shards, one slide a process.

A slide's folder appears only when whole, so a run that was stopped goes on where it stopped. Several processes may
work on one list: a lock gives each slide to one of them. A slide that fails is reported at the end and stops no other.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from papsmear.cohort import Slide, read_slides
from papsmear.errors import InputError, UsageError
from papsmear.files import part_of
from papsmear.progress import say, track
from papsmear.tiling import failed
from papsmear.tiling.claim import can_claim, claim, lock_of
from papsmear.tiling.cut import TileSettings
from papsmear.tiling.deposit import Area
from papsmear.tiling.folder import NOT_THERE, why_tile
from papsmear.tiling.grid import Inside
from papsmear.tiling.planes import Focus
from papsmear.tiling.pool import checked_workers, each
from papsmear.tiling.reader import Engine, check_given_mpp
from papsmear.tiling.slide import Outcome, tile_slide
from papsmear.tiling.summary import write_summary


def tile(
    slides: Path,
    out: Path,
    area: Area = "disc",
    mpp: float | None = None,
    size_px: int = 320,
    tile_mpp: float = 0.5,
    quality: int = 90,
    inside: Inside = "centre",
    z: Focus = "best",
    upsample: bool = False,
    reader: Engine = "auto",
    min_focus: float = 0,
    min_content: float = 0,
    share: str | None = None,
    workers: int | None = None,
) -> int:
    """Cuts slides into tiles and writes them as WebDataset shards, one folder a slide.

    A slide that is done already is left as it is, so a run that was stopped goes on where it stopped. What is
    damaged is made again. Several runs over one list share it.

    Args:
        slides: The slides.csv.
        out: The folder that gets a folder for each slide (shards, slide.json, overview.jpg), summary.html and
            summary.csv.
        area: What to tile: the round cell deposit of a liquid-based preparation, all tissue, or all of the slide.
        mpp: The slide's own µm/px, for files that do not tell it and have none in the column mpp of slides.csv.
        size_px: Side of a tile.
        tile_mpp: µm/px of the tiles.
        quality: JPEG quality of the tiles.
        inside: What of a tile must lie in the area: its centre, or the whole square.
        z: The focal plane of slides that have several: the best for each tile, all (a tile for each), or the µm of one.
        upsample: Enlarge slides whose pixels are larger than tile_mpp; they fail otherwise.
        reader: How slides are read: openslide, jpeg (by their JPEG tiles), or auto, which is jpeg where that can be.
        min_focus: Leave out tiles with a lower focus score; 0 keeps all, as the published protocol does.
        min_content: Leave out tiles with a lower cell-content score, a share from 0 to 1; 0 keeps all.
        share: Which part of the list, such as 2/8: every eighth slide from the second on. For arrays of jobs.
        workers: How many slides at a time; as many as there are processor cores if not given.
    """
    settings = TileSettings(area, size_px, tile_mpp, quality, inside, z, upsample, reader, min_focus, min_content)
    check_given_mpp(mpp)
    workers = checked_workers(workers)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: --out is a file; name a folder")
    listed = [dataclasses.replace(slide, mpp=slide.mpp or mpp) for slide in read_slides(slides)]
    failed.check_ids(listed)
    mine = _shared(listed, share)
    todo = _todo(mine, out, settings)
    locks = can_claim(out)
    if not locks and share is None:
        raise UsageError(
            f"{out}: its file system has no locks, so two processes could write one slide; where no other process"
            " works on this list, say so with --share=1/1"
        )
    outcomes = _run(partial(tile_slide, out=out, settings=settings, locks=locks), todo, workers, out)
    n = Counter(outcome.status for outcome in outcomes.values())
    tiles, before = sum(outcome.tiles for outcome in outcomes.values()), len(mine) - len(todo) + n["done before"]
    elsewhere = f", {n['elsewhere']} left to another process" * bool(n["elsewhere"])
    say(f"{out}: {n['tiled']} slides tiled ({tiles} tiles), {before} done before, {n['failed']} failed{elsewhere}")
    _summarise(out, [slide.slide_id for slide in listed], locks, alone=len(mine) == len(listed))
    return 1 if n["failed"] else 0


def _summarise(out: Path, slide_ids: list[str], locks: bool, alone: bool) -> None:
    if not (locks or alone):
        say(f"{out}: no summary, since its file system has no locks; --share=1/1 writes it when all shares are done")
        return
    with claim(out / "summary", wait=True) if locks else nullcontext():
        page = write_summary(out, slide_ids)
    say(f"overviews, counts and warnings of all slides: {page}")


def _shared(slides: list[Slide], share: str | None) -> list[Slide]:
    """The slides that are ours: all, or by the share K/N every N-th from the K-th on."""
    match = re.fullmatch(r"(\d+)/(\d+)", share or "1/1")
    first, step = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= step:
        raise UsageError(f"--share={share} is no share of the list; 1/4 to 4/4 are")
    return slides[first - 1 :: step]


def _todo(slides: list[Slide], out: Path, settings: TileSettings) -> list[Slide]:
    """Those not done, and those of which a killed run has left something else."""
    there = {file.name for folder in (out, out / failed.FOLDER) if folder.is_dir() for file in folder.iterdir()}
    todo = []
    for slide in slides:
        folder = out / slide.slide_id
        why = why_tile(folder, slide, settings)
        if why not in (None, NOT_THERE):
            say(f"slide {slide.slide_id} is made again: {why}")
        left = {part_of(folder).name, lock_of(folder).name, *failed.files_of(slide.slide_id)}
        if why is not None or left & there:
            todo.append(slide)
    return todo


def _run(work: Callable[[Slide], Outcome], todo: list[Slide], workers: int, out: Path) -> dict[str, Outcome]:
    """What became of each slide, by its id; the failures are told at the end, whatever happens."""
    outcomes: dict[str, Outcome] = {}
    try:
        for slide, outcome in track(each(work, todo, workers), "slides", len(todo)):
            outcomes[slide.slide_id] = outcome
    except BrokenProcessPool as error:
        raise InputError(
            f"{out}: a worker process was killed, often since memory ran out; start the command again with fewer"
            " --workers: it goes on from there"
        ) from error
    finally:
        for slide_id, outcome in sorted(outcomes.items()):
            if outcome.status == "failed":
                say(f"slide {slide_id} failed: {outcome.reason}")
    return outcomes
