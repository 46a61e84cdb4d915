"""`papsmear crop`: from annotated slides to two labelled sets, cell crops and tiles.

    annotations → which pictures → cut out of the slides; negative tiles drawn from the shards → csv, crop.json

OUT/cells/<class>/*.png                cell crops, listed in cells.csv
OUT/tiles/positive, tiles/negative     tiles, listed in tiles.csv
OUT/crop.json                          settings, counts, and every annotation that gave no cell

The whole folder appears at once, since the number of negative tiles depends on all slides.
"""

import csv
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from papsmear import __version__
from papsmear.cohort import Slide, read_slides
from papsmear.errors import InputError, UsageError
from papsmear.files import whole
from papsmear.progress import say, track
from papsmear.tiling.negatives import Source, copy_tiles, draw, find_sources
from papsmear.tiling.pool import checked_workers, each
from papsmear.tiling.reader import check_given_mpp
from papsmear.tiling.samples import COLUMNS, CropSettings, OnProblem, Picture, Side, SlidePlan, cut_slide, plan_slide

R = TypeVar("R")

NAMED_AT_MOST = 20  # features of one file with the same problem; crop.json names all


def crop(
    slides: Path,
    shards: Path,
    out: Path,
    classes: dict[str, Side],
    size_px: int = 320,
    tile_mpp: float = 0.5,
    quality: int = 90,
    margin_um: float = 2.0,
    point_um: float = 30.0,
    on_problem: OnProblem = "skip",
    seed: int = 0,
    mpp: float | None = None,
    upsample: bool = False,
    workers: int | None = None,
) -> int:
    """Makes labelled cells and tiles of the cells that were annotated in QuPath.

    Every annotated cell gives a crop; every positive one also a tile with the cell in its middle. As many random tiles
    come from the shards of negative slides, fold by fold. The column annotations of slides.csv names the GeoJSON files.

    Args:
        slides: The slides.csv.
        shards: What papsmear tile wrote, for the negative tiles.
        out: The folder to write: cells, tiles, cells.csv, tiles.csv, crop.json.
        classes: What a class in QuPath means: positive, negative or ignore. A class counts by its full name, else by
            its first parts; capitals do not matter.
        size_px: Side of a tile; that of the shards.
        tile_mpp: µm/px of crops and tiles; that of the shards.
        quality: JPEG quality of the positive tiles; that of the shards.
        margin_um: What a crop shows around the cell's box.
        point_um: Side of the square that a point annotation stands for.
        on_problem: What to do about annotations that are no cells: skip them, or refuse to begin.
        seed: Decides which negative tiles are taken.
        mpp: The slide's own µm/px, for files that do not tell it and have none in the column mpp of slides.csv.
        upsample: Enlarge slides whose pixels are larger than tile_mpp; they fail otherwise.
        workers: How many slides at a time; as many as there are processor cores if not given.
    """
    settings = CropSettings(classes, size_px, tile_mpp, quality, margin_um, point_um, on_problem, seed, upsample)
    check_given_mpp(mpp)
    workers = checked_workers(workers)
    listed = [dataclasses.replace(slide, mpp=slide.mpp or mpp) for slide in read_slides(slides, need_files=False)]
    annotated = [(slide, slides.parent / file) for slide in listed if (file := slide.row.get("annotations"))]
    if not annotated:
        raise UsageError(f"{slides}: no slide has annotations; name their GeoJSON files in a column 'annotations'")
    sources = find_sources(listed, shards, settings)
    made_of = {"settings": dataclasses.asdict(settings), "inputs": _inputs(annotated, sources)}
    if _is_done(out, made_of):
        say(f"{out}: done before")
        return 0
    try:
        return _make(out, annotated, sources, settings, made_of, workers)
    except BrokenProcessPool as error:
        why = "a worker process was killed, often since memory ran out"
        raise InputError(f"{out}: {why}; start the command again with fewer --workers") from error


def _is_done(out: Path, made_of: Mapping[str, Any]) -> bool:
    """Whether `out` is what would be made. UsageError where it is something else; False where slides had failed."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = dict(json.loads((out / "crop.json").read_text(encoding="utf-8")))
        before = {**found["settings"], **found["inputs"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{out}: not a folder of papsmear crop; name another one with --out") from error
    changed = [f"{k} {before.get(k)} instead of {v}" for k, v in made_of["settings"].items() if before.get(k) != v]
    changed += [f"other {name}" for name, value in made_of["inputs"].items() if before.get(name) != value]
    if changed:
        raise UsageError(f"{out}: made with {', '.join(changed)}; delete it or name another folder with --out")
    return not found.get("failed")


def _inputs(annotated: Sequence[tuple[Slide, Path]], sources: Sequence[Source]) -> dict[str, str]:
    """Checksums by which a later run knows whether it is about the same slides, annotations and shards."""

    def checksum(parts: Sequence[str | bytes]) -> str:
        return hashlib.sha256(b"\n".join(p if isinstance(p, bytes) else p.encode() for p in parts)).hexdigest()[:16]

    slides = sorted([slide for slide, _ in annotated] + [source.slide for source in sources], key=lambda s: s.slide_id)
    return {
        "slides": checksum([f"{s.slide_id} {s.path.name} {s.label} {s.fold} {s.mpp}" for s in slides]),
        "annotations": checksum([file.read_bytes() if file.is_file() else "none" for _, file in annotated]),
        "shards": checksum([(source.folder / "slide.json").read_bytes() for source in sources]),
    }


def _make(
    out: Path,
    annotated: Sequence[tuple[Slide, Path]],
    sources: list[Source],
    settings: CropSettings,
    made_of: Mapping[str, Any],
    workers: int,
) -> int:
    failed: dict[str, str] = {}
    try:
        plans = _over_slides(partial(plan_slide, settings=settings), annotated, "annotations", workers, failed)
        _tell_problems(plans, {slide.slide_id: file for slide, file in annotated}, settings.on_problem)
        if not any(plan.cells for plan in plans.values()):
            raise (InputError if failed else UsageError)(f"{out}: there is no annotated cell to crop; nothing written")
        with whole(out) as part:
            cells, tiles = _write(part, annotated, plans, sources, settings, workers, failed)
            if not cells:
                raise InputError(f"{out}: no slide with annotated cells could be read; nothing written")
            counts = _counts(plans, cells, tiles)
            every = ((slide_id, problem) for slide_id, plan in plans.items() for problem in plan.problems)
            problems = [{"slide_id": slide_id, "feature": p.feature, "problem": p.kind} for slide_id, p in every]
            outcome = {"counts": counts, "failed": sorted(failed), "problems": problems}
            text = json.dumps({"papsmear": __version__, **made_of, **outcome}, indent=1, ensure_ascii=False)
            (part / "crop.json").write_text(text + "\n", encoding="utf-8")
    finally:
        for slide_id, reason in sorted(failed.items()):
            say(f"slide {slide_id} failed: {reason}")
    _tell(out, counts, len(failed))
    return 1 if failed else 0


def _over_slides(
    function: Callable[[Any], R | str],
    jobs: Sequence[tuple[Slide | Source, Any]],
    what: str,
    workers: int,
    failed: dict[str, str],
) -> dict[str, R]:
    """What `function` makes of each slide's job, in their order; `failed` gets the reasons of those that failed."""
    results: dict[str, R] = {}
    for job, result in track(each(function, jobs, workers), what, len(jobs)):
        if isinstance(result, str):
            failed[job[0].slide_id] = result
        else:
            results[job[0].slide_id] = result
    return {job[0].slide_id: results[job[0].slide_id] for job in jobs if job[0].slide_id in results}


def _write(
    part: Path,
    annotated: Sequence[tuple[Slide, Path]],
    plans: Mapping[str, SlidePlan],
    sources: list[Source],
    settings: CropSettings,
    workers: int,
    failed: dict[str, str],
) -> tuple[list[Picture], list[Picture]]:
    """Writes all pictures and their lists; the cells and the tiles that are there then."""
    ready = [(slide, plans[slide.slide_id]) for slide, _ in annotated if slide.slide_id in plans]
    jobs = [(slide, plan) for slide, plan in ready if plan.cells]
    planned = [picture.file for _, plan in jobs for picture in (*plan.cells, *plan.tiles)]
    for folder in {"tiles/positive", "tiles/negative", *(str(Path(file).parent) for file in planned)}:
        (part / folder).mkdir(parents=True, exist_ok=True)
    cut = _over_slides(partial(cut_slide, folder=part, settings=settings), jobs, "cells and tiles", workers, failed)
    done = [plan for slide, plan in jobs if slide.slide_id in cut]
    cells = [picture for plan in done for picture in plan.cells]
    tiles = [picture for plan in done for picture in plan.tiles]
    drawn = draw(sources, Counter(picture.fold for picture in tiles), settings.seed)
    copied = _over_slides(partial(copy_tiles, out=part), drawn, "negative tiles", workers, failed)
    tiles += [picture for pictures in copied.values() for picture in pictures]
    for name, pictures in (("cells.csv", cells), ("tiles.csv", tiles)):
        with (part / name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(picture.row() for picture in pictures)
    return cells, tiles


def _tell_problems(plans: Mapping[str, SlidePlan], file_of: Mapping[str, Path], on_problem: OnProblem) -> None:
    """Names every annotation that is no cell, those of one file and reason in one line. UsageError if so wished."""
    lines = []
    for slide_id, plan in plans.items():
        features: dict[str, list[str]] = {}
        for problem in plan.problems:
            features.setdefault(problem.reason, []).append(problem.feature)
        for reason, names in features.items():
            shown = names if on_problem == "refuse" else names[:NAMED_AT_MOST]
            more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
            which = f": feature {', '.join(shown)}{more}" if any(names) else ""
            lines.append(f"{file_of[slide_id]}{which}: {reason}")
    if lines and on_problem == "refuse":
        raise UsageError(f"{'; '.join(lines)}; mend them in QuPath, or leave them out with --on_problem=skip")
    for line in lines:
        say(f"{line}; skipped")


def _counts(plans: Mapping[str, SlidePlan], cells: Sequence[Picture], tiles: Sequence[Picture]) -> dict[str, Any]:
    folds = sorted({picture.fold for picture in tiles}, key=lambda fold: -1 if fold is None else fold)
    of = Counter((picture.fold, picture.label) for picture in tiles)
    return {
        "cells": dict(sorted(Counter(picture.class_name for picture in cells).items())),
        "tiles": {"positive": sum(p.label for p in tiles), "negative": sum(1 - p.label for p in tiles)},
        "folds": {
            "none" if fold is None else str(fold): {"positive": of[fold, 1], "negative": of[fold, 0]} for fold in folds
        },
        "ignored": sum(plan.ignored for plan in plans.values()),
        "problems": dict(sorted(Counter(p.kind for plan in plans.values() for p in plan.problems).items())),
    }


def _tell(out: Path, counts: Mapping[str, Any], n_failed: int) -> None:
    for fold, of in counts["folds"].items():
        if of["negative"] < of["positive"]:
            have = f"{of['negative']} negative tiles for {of['positive']} positive ones"
            say(f"fold {fold}: {have}; the shards of its negative slides have no more")
    problems = counts["problems"]
    kinds = f" ({', '.join(f'{n} {kind}' for kind, n in problems.items())})" if problems else ""
    tiles = f"{counts['tiles']['positive']} positive and {counts['tiles']['negative']} negative tiles"
    left = f"{sum(problems.values())} annotations skipped{kinds}, {counts['ignored']} ignored by class"
    say(f"{out}: {sum(counts['cells'].values())} cells, {tiles}; {left}; {n_failed} slides failed")
