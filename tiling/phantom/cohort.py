"""`papsmear phantom`: a cohort of synthetic SurePath slides of which everything is known.

OUT/slides.csv                     labels, Bethesda classes, patients, folds, sites
OUT/slides/<slide_id>.svs          one file a slide, more with several planes
OUT/annotations/<slide_id>.geojson outlines of its abnormal cells, for QuPath
OUT/cells/herlev, cells/sipakmed   single cells in the layouts of the public sets
OUT/phantom.json                   the settings; a run goes on only with the same
"""

import hashlib
import json
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2

from papsmear import seeds
from papsmear.cohort import write_rows
from papsmear.errors import InputError, UsageError
from papsmear.files import write_text
from papsmear.progress import say, track
from papsmear.tiling.annotations import read_annotations
from papsmear.tiling.phantom.bethesda import bethesda_class
from papsmear.tiling.phantom.cellsets import write_cell_sets
from papsmear.tiling.phantom.cutouts import CutOut, deal, find_cutouts
from papsmear.tiling.phantom.realcells import RealCells
from papsmear.tiling.phantom.roster import Entry, draw_roster
from papsmear.tiling.phantom.scene import Finding, Scene
from papsmear.tiling.phantom.svs import write_svs
from papsmear.tiling.pool import checked_workers, each

PLANE_STEP_UM = 1
_COLOURS = {
    "light_dysplastic": (255, 200, 0),
    "im_Koilocytotic": (255, 160, 60),
    "moderate_dysplastic": (255, 120, 0),
    "severe_dysplastic": (220, 40, 40),
    "im_Dyskeratotic": (200, 60, 160),
    "carcinoma_in_situ": (140, 0, 30),
}


@dataclass(frozen=True)
class PhantomSettings:
    """What decides the bytes of a cohort, with the seed; the options of `phantom`."""

    slides: int
    prevalence: float
    abnormal: float
    diameter_mm: float
    mpp: float
    planes: int
    sites: int
    folds: int
    cell_sets: int
    seed: int

    def check(self) -> None:
        """UsageError listing every value that cannot be."""
        problems = [
            f"--{name}={value:g} is not {what}"
            for name, value, what, right in (
                ("slides", self.slides, "1 or more", self.slides >= 1),
                ("prevalence", self.prevalence, "a share from 0 to 1", 0 <= self.prevalence <= 1),
                ("abnormal", self.abnormal, "a share above 0, up to 1", 0 < self.abnormal <= 1),
                ("diameter_mm", self.diameter_mm, "from 0.1 to 30 mm", 0.1 <= self.diameter_mm <= 30),
                ("mpp", self.mpp, "from 0.1 to 1 µm/px", 0.1 <= self.mpp <= 1),
                ("planes", self.planes, "1, 3 or 5", self.planes in (1, 3, 5)),
                ("sites", self.sites, "1 or more", self.sites >= 1),
                ("folds", self.folds, "1 or more", self.folds >= 1),
                ("cell_sets", self.cell_sets, "0 or more", self.cell_sets >= 0),
            )
            if not right
        ]
        if problems:
            raise UsageError("; ".join(problems))


def phantom(
    out: Path,
    slides: int = 20,
    prevalence: float = 0.2,
    abnormal: float = 0.005,
    diameter_mm: float = 13,
    mpp: float = 0.25,
    planes: int = 1,
    sites: int = 3,
    folds: int = 4,
    cells: Path | None = None,
    cell_sets: int = 20,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Writes a cohort of synthetic SurePath slides with known truth.

    The same options give the same bytes. A run that was stopped goes on where it stopped.

    Args:
        out: The folder for the cohort.
        slides: How many slides.
        prevalence: Share of positive slides.
        abnormal: Share of abnormal cells on a positive slide; there is always one.
        diameter_mm: Diameter of the spot of cells; 13 is SurePath's, smaller spots are quicker.
        mpp: µm per pixel of the slides.
        planes: Focal planes 1 µm apart: 1, 3 or 5; each a file.
        sites: How many sites, each with a stain of its own.
        folds: How many folds patients are dealt to.
        cells: A set of real cells in the layout of Herlev or SIPaKMeD to use in place of drawn ones; folds share no
            cell nor picture.
        cell_sets: Single cells of each class to write under cells/; 0 for none.
        seed: Gives another cohort.
        workers: How many slides at a time; as many as there are processor cores if not given.
    """
    settings = PhantomSettings(slides, prevalence, abnormal, diameter_mm, mpp, planes, sites, folds, cell_sets, seed)
    settings.check()
    workers = checked_workers(workers)
    cutouts = find_cutouts(cells) if cells else []
    dealt = deal(cutouts, folds, seed) if cutouts else None
    _claim(out, {**vars(settings), "cells": _fingerprint(cutouts) if cutouts else None})
    roster = draw_roster(slides, prevalence, sites, folds, seed)
    todo = [(entry, dealt[entry.fold] if dealt else None) for entry in roster if not _is_done(out, entry, settings)]
    work = partial(_write_slide, out=out, settings=settings)
    try:
        for _ in track(each(work, todo, workers), "phantom slides", len(todo)):
            pass
        if cell_sets and not all((out / "cells" / name).is_dir() for name in ("herlev", "sipakmed")):
            write_cell_sets(out / "cells", seed, cell_sets)
    except BrokenProcessPool as error:
        raise InputError(
            f"{out}: a worker process was killed, often since memory ran out; start the command again with fewer"
            " --workers: it goes on from there"
        ) from error
    write_rows(out / "slides.csv", [_row(out, entry, planes) for entry in roster])
    _tell(out, roster, folds)


def _claim(out: Path, settings: dict[str, object]) -> None:
    """Writes the settings into a new folder; UsageError where the folder holds a cohort with others."""
    file = out / "phantom.json"
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder")
    if not file.exists():
        if (out / "slides.csv").exists():
            raise UsageError(f"{out} holds slides.csv of something else than a phantom cohort; name another folder")
        write_text(file, json.dumps(settings, indent=1) + "\n")
        return
    try:
        before = dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UsageError(f"{file} is damaged ({error}); remove the folder or name another") from error
    differ = [name for name in settings if before.get(name) != settings[name]]
    if differ:
        was = ", ".join(f"{name}={before.get(name)}" for name in differ)
        raise UsageError(f"{out} holds a cohort made with {was}; use the same, or name another folder")


def _fingerprint(cutouts: list[CutOut]) -> str:
    """What set of cells it is, without its path."""
    names = "\n".join(f"{cell.kind}/{cell.image.name}/{cell.image.stat().st_size}" for cell in cutouts)
    return f"{len(cutouts)} cells, {hashlib.sha256(names.encode()).hexdigest()[:16]}"


def _z_of(settings: PhantomSettings) -> list[int]:
    """µm of each plane, the middle one last: its file stands for the whole slide."""
    half = settings.planes // 2
    return sorted((z * PLANE_STEP_UM for z in range(-half, half + 1)), key=lambda z: -abs(z))


def _slide_file(slide_id: str, z_um: int) -> str:
    return f"slides/{slide_id}_z{z_um:+d}.svs" if z_um else f"slides/{slide_id}.svs"


def _annotation_file(slide_id: str) -> str:
    return f"annotations/{slide_id}.geojson"


def _is_done(out: Path, entry: Entry, settings: PhantomSettings) -> bool:
    files = [_slide_file(entry.slide_id, z) for z in _z_of(settings)]
    return all((out / file).is_file() for file in (*files, _annotation_file(entry.slide_id)))


def _write_slide(job: tuple[Entry, list[CutOut] | None], out: Path, settings: PhantomSettings) -> None:
    """Writes one slide, all its planes and its annotations; what is there of it already is kept."""
    cv2.setNumThreads(1)
    entry, cutouts = job
    scene = Scene(
        entry.seed,
        entry.site,
        settings.diameter_mm,
        settings.mpp,
        settings.abnormal if entry.label else 0.0,
        RealCells(cutouts, settings.mpp) if cutouts else None,
    )
    for z_um in _z_of(settings):
        file = out / _slide_file(entry.slide_id, z_um)
        if not file.is_file():
            magnification = round(10 / settings.mpp)
            write_svs(file, scene.size_level0, scene.strips(z_um), settings.mpp, entry.identity, magnification)
    features = [_feature(finding, seeds.derive(entry.seed, "uuid", i)) for i, finding in enumerate(scene.findings)]
    collection = {"type": "FeatureCollection", "features": features}
    write_text(out / _annotation_file(entry.slide_id), json.dumps(collection) + "\n")


def _feature(finding: Finding, number: int) -> dict[str, object]:
    ring = finding.outline_level0.tolist()
    return {
        "type": "Feature",
        "id": f"{number:016x}",
        "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": finding.kind, "color": list(_COLOURS[finding.kind])},
        },
    }


def _row(out: Path, entry: Entry, planes: int) -> dict[str, str]:
    """A line of slides.csv, of a slide that is there: its class is that of the cells that were annotated."""
    cells, _ = read_annotations(out / _annotation_file(entry.slide_id))
    row = {
        "slide_id": entry.slide_id,
        "path": _slide_file(entry.slide_id, 0),
        "label": str(entry.label),
        "bethesda": bethesda_class([cell.classification[0] for cell in cells]),
        "patient_id": entry.patient_id,
        "fold": str(entry.fold),
        "site": entry.site,
        "scanner": entry.scanner,
        "annotations": _annotation_file(entry.slide_id),
    }
    if planes > 1:
        row["z_planes"] = f"slides/{entry.slide_id}_z{{z:+d}}.svs"
    return row


def _tell(out: Path, roster: list[Entry], folds: int) -> None:
    positive = sum(entry.label for entry in roster)
    say(f"{out}: {len(roster)} slides, {positive} positive, in {folds} folds")
    lacking = [fold for fold in range(folds) if len({e.label for e in roster if e.fold == fold}) < 2]
    if lacking:
        names = ", ".join(map(str, lacking))
        say(f"fold {names}: not both positive and negative slides; for training take more --slides or fewer --folds")
