"""`papsmear c3p`: a linear classifier of in-house tiles that has learnt from public single cells, and its ablation.

The classifier is fitted on tiles of other slides with public cells pasted on them, and tested on the annotated tiles of
a fold; beside it stands one that is fitted on the single cells as they are.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import yaml
from rich.console import Console
from rich.table import Table

from papsmear import seeds
from papsmear.cohort import folds_of, read_slides
from papsmear.errors import InputError, UsageError
from papsmear.files import whole, write_text
from papsmear.probes.ablation import VARIANTS, Fold, ablate
from papsmear.probes.binary import F1
from papsmear.probes.c3p_report import Ablation, c3p_json, f1_by_probability, log_c3p, write_c3p_page
from papsmear.probes.canvases import draw_canvases, of_fold, read_labelled_tiles
from papsmear.probes.datasets import CellSet, read_cells
from papsmear.probes.inputs import check_names, plain_sources
from papsmear.probes.labelled import by_side, labelled_cells
from papsmear.probes.names import name_encoders, with_folds
from papsmear.probes.sheet import sheet
from papsmear.probes.sources import SetSource
from papsmear.progress import say
from papsmear.ssl.card import check_leak
from papsmear.ssl.encoder import load_encoder
from papsmear.tracking import run_of_job


def c3p(
    out: Path,
    encoders: list[str] | dict[str, str] | str,
    cells: dict[str, SetSource | Path],
    shards: Path,
    slides: Path,
    tiles: Path,
    fold: int | None = None,
    canvases: int = 1000,
    masked: bool = True,
    seed: int = 0,
    device: str | None = None,
    cache: Path | None = None,
    allow_leak: bool = False,
) -> int:
    """Pastes public cells on tiles, fits a linear classifier on them, and tests it on annotated tiles.

    C3P with its ablation: paste, blend, poisson and no pasting, by how often a canvas of a negative slide gets a cell.
    Canvases come from slides outside the tested fold. OUT gets c3p.html, c3p.json, c3p.png, config.yaml and the W&B
    run (online with a login).

    Args:
        out: The folder to write to.
        encoders: One encoder, a list of them, or name: encoder pairs, as for papsmear probe.
        cells: Folders of the unpacked sets (--cells.herlev=DIR), and sets of your own, as --sets of papsmear probe;
            with their µm/px where these are not known (--cells.sipakmed="{path: DIR, mpp: 0.2}").
        shards: The folder that papsmear tile wrote.
        slides: The slides.csv, with labels and folds.
        tiles: The tiles.csv that papsmear crop wrote.
        fold: The fold to test on; each in turn, if not given.
        canvases: How many canvases of positive slides, and as many of negative ones.
        masked: Paste a cell within its mask, where its set has masks; false pastes its whole picture.
        seed: Decides canvases, cells and places.
        device: cpu, cuda, … ; a GPU where there is one, if not given.
        cache: Folder to keep features in; OUT/features if not given.
        allow_leak: Go on where an encoder was trained on slides to test on, and mark all figures.
    """
    named, _ = with_folds(name_encoders(encoders))
    check_names(cells, {}, "--cells")
    if canvases < 1:
        raise UsageError(f"--canvases={canvases}: give at least 1; the study took about 1000 a class")
    folds, damaged = _folds(shards, slides, tiles, fold, canvases, seed)
    sets = [read_cells(name, source) for name, source in cells.items()]
    _check_not_tested(sets, folds)
    read = {s.name: labelled_cells(s, folds[0].canvases.mpp, masked) for s in sets}
    pasteable = tuple(cell for found in read.values() for cell in found.cells)
    for label, side in ((1, "positive"), (0, "negative")):
        if not by_side(pasteable, label):
            raise UsageError(f"--cells: no {side} cells in {', '.join(s.title for s in sets)}; it takes both sides")
    ablation = Ablation(
        sets=tuple(sets), cells=pasteable, folds=tuple(folds), damaged=damaged, seed=seed,
        masked=tuple(s.title for s in sets if read[s.name].masked),
        scaled_by_class=tuple(s.title for s in sets if read[s.name].scaled_by_class),
    )  # fmt: skip
    _measure(ablation, named, device, cache or out / "features", allow_leak)
    config = {
        "encoders": named, "cells": plain_sources(cells), "shards": str(shards),
        "slides": str(slides), "tiles": str(tiles), "fold": fold, "canvases": canvases, "masked": masked,
        "seed": seed, "device": device, "cache": None if cache is None else str(cache),
        "allow_leak": allow_leak,
    }  # fmt: skip
    _write(out, ablation, config)
    return _tell(out, ablation)


def _check_not_tested(sets: list[CellSet], folds: list[Fold]) -> None:
    """UsageError where cells to paste, of one's own slides, are of slides to test on."""
    tested = {slide_id for fold in folds for slide_id in fold.tested.slide_ids}
    shared = sorted(tested & {slide_id for cells in sets for slide_id in cells.slides})
    if shared:
        raise UsageError(
            f"--cells: cells of {len(shared)} of the slides to test on: {', '.join(shared)}; give --fold, and only "
            "cells of the other folds"
        )


def _folds(
    shards: Path, slides: Path, tiles: Path, only: int | None, canvases: int, seed: int
) -> tuple[list[Fold], dict[str, str]]:
    """Each tested fold with canvases of the other folds' slides; and the tiles that could not be read."""
    listed = {slide.slide_id: slide for slide in read_slides(slides, need_files=False)}
    tested, damaged = read_labelled_tiles(tiles)
    for name, reason in damaged.items():
        say(f"{tiles}: {name} is left out: {reason}")
    if unknown := sorted(set(tested.slide_ids) - set(listed)):
        raise UsageError(f"{tiles}: tiles of slides that {slides} does not have: {', '.join(unknown)}; crop them again")
    numbers = folds_of(slides, list(listed.values()))
    if len(numbers) < 2 or (only is not None and only not in numbers):
        has = f"it has {'fold' if len(numbers) == 1 else 'folds'} {', '.join(map(str, numbers))}" if numbers else "none"
        wanted = "two or more folds are wanted" if only is None else f"fold {only} and others are wanted"
        raise UsageError(f"{slides}: {wanted}, {has}; papsmear split adds them")
    folds = []
    for number in numbers if only is None else [only]:
        others = [slide for slide in listed.values() if slide.fold is not None and slide.fold != number]
        fold = Fold(
            number, draw_canvases(shards, others, canvases, seeds.derive(seed, "fold", number)),
            of_fold(tested, listed, number),
        )  # fmt: skip
        if fold.canvases.mpp != fold.tested.mpp:
            raise UsageError(
                f"{tiles}: tiles at {fold.tested.mpp:g} µm/px, but canvases of {shards} at {fold.canvases.mpp:g}; "
                "tile and crop at the same"
            )
        folds.append(fold)
    return folds, damaged


def _measure(ablation: Ablation, named: dict[str, str], device: str | None, cache: Path, allow_leak: bool) -> None:
    """All encoders; one that cannot be read or gives no features is left out and recorded."""
    tested = {slide_id for fold in ablation.folds for slide_id in fold.tested.slide_ids}
    loaded = {}
    for name, reference in named.items():  # all before any work: a misspelt or leaking one is refused at once
        try:
            loaded[name] = load_encoder(reference, device)
        except InputError as error:
            ablation.failed[name] = " ".join(str(error).split())
            continue
        if check_leak(loaded[name].card, tested, allow_leak):
            ablation.leaking.append(name)
    for name, encoder in loaded.items():
        try:
            found = ablate(encoder, name, ablation.sets, ablation.cells, ablation.folds, ablation.seed, cache)
        except InputError as error:
            ablation.failed[name] = " ".join(str(error).split())
            continue
        ablation.cards[name], ablation.outcomes[name] = encoder.card, found
    if not ablation.cards:
        reasons = "; ".join(f"{name}: {why}" for name, why in ablation.failed.items())
        raise InputError(f"no encoder gave features: {reasons}")


def _write(out: Path, ablation: Ablation, config: dict[str, Any]) -> None:
    canvases = ablation.folds[0].canvases
    picture = sheet(canvases.tiles, canvases.labels.tolist(), ablation.cells, ablation.seed)
    with whole(out / "c3p.png") as part:
        part.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
    drawn = {name: f1_by_probability(found) for name, found in ablation.outcomes.items()}
    write_text(out / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_text(out / "c3p.json", c3p_json(ablation))
    write_c3p_page(out / "c3p.html", ablation, picture, drawn)
    cards = {name: json.loads(json.dumps(asdict(card))) for name, card in ablation.cards.items()}
    with run_of_job(out, "c3p", {**config, "cards": cards}) as run:
        log_c3p(run, ablation, picture, drawn, out / "c3p.html")


def _tell(out: Path, ablation: Ablation) -> int:
    """The table on standard output, what could not be used on standard error; the exit status."""
    mark = " (LEAK: an encoder was trained on slides tested here)" if ablation.leaking else ""
    table = Table("fitted on", title=f"F1 of positives on tiles, %{mark}", title_justify="left")
    for name in ablation.outcomes:
        table.add_column(name, justify="right")
    for variant in VARIANTS:
        spreads = [found[variant].scores[F1] for found in ablation.outcomes.values()]
        shown = "{:.1f} ± {:.1f}" if len(ablation.folds) > 1 else "{:.1f}"
        table.add_row(variant.title, *(shown.format(100 * spread.mean, 100 * spread.sd) for spread in spreads))
    Console().print(table)
    say(f"report: {out / 'c3p.html'}")
    for name, reason in ablation.failed.items():
        say(f"encoder {name} is left out: {reason}")
    for cells in ablation.sets:
        for file, reason in cells.damaged.items():
            say(f"{cells.title}: {file} is left out: {reason}")
    return 1 if ablation.failed or ablation.damaged or any(cells.damaged for cells in ablation.sets) else 0
