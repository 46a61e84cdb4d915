"""`papsmear finetune`: an encoder fine-tuned on single cells and cross-validated, by the DeepPap protocol.

Two cross-validations stand side by side: over cells, as published, where cells of one picture are on both sides; and
by source picture, which is the honest one.
"""

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from papsmear.errors import UsageError
from papsmear.files import write_text
from papsmear.probes.classes import CLASSES
from papsmear.probes.datasets import CellSet, read_cells
from papsmear.probes.deeppap import PROTOCOL, DeepPap, Task, cross_validation
from papsmear.probes.finetune_report import Outcome, Tuned, log_to_wandb, print_table, results_json, write_page
from papsmear.probes.folds import check_folds, checksum, fold_scores
from papsmear.probes.knn import Ints
from papsmear.probes.names import name_encoders
from papsmear.probes.nuclei import Nucleus, read_nuclei
from papsmear.probes.results import GROUPED, UNGROUPED
from papsmear.probes.screening import FoldScores, binary, of_classes
from papsmear.probes.splits import Part, source_pictures
from papsmear.probes.tuning import Work, fit, mean_scores
from papsmear.progress import say
from papsmear.ssl.encoder import Encoder, load_encoder
from papsmear.tracking import run_of_job


def finetune(
    out: Path,
    encoder: str,
    set: dict[str, Path],  # noqa: A002  # the name of the option
    protocol: DeepPap = PROTOCOL,
    input_px: int | None = None,
    seed: int = 0,
    device: str | None = None,
    workers: int = 0,
) -> int:
    """Fine-tunes an encoder on single cells by the DeepPap protocol, and tests it by cross-validation.

    Patches round each nucleus, rotations and translations that balance normal and abnormal cells, and the mean score of
    many views. Folds over cells, as published, and by source picture. OUT gets finetune.html, finetune.json,
    config.yaml and the W&B run (online with a login). Finished folds are kept in OUT/folds: the same command goes on.

    Args:
        out: The folder to write to.
        encoder: timm:ARCHITECTURE, random:ARCHITECTURE, hf-hub:REPOSITORY or a .safetensors file.
        set: The folder of the unpacked set with its masks or outlines (--set.herlev=DIR, --set.sipakmed=DIR).
        protocol: The numbers of the protocol.
        input_px: Side of the network's input; the encoder's own, if not given.
        seed: Decides the folds, the patches and what is learnt.
        device: cpu, cuda, … ; a GPU where there is one, if not given.
        workers: Processes that cut patches; they do not change what is learnt.
    """
    protocol.check()
    name, folder = _only(set)
    cells, nuclei = _with_nuclei(_of_two_sides(read_cells(name, folder)), folder, protocol.folds)
    network = _at_size(load_encoder(encoder, device), input_px)
    parts = _folds(cells, protocol, seed)
    made_with = _made_with(network, cells, nuclei, protocol, seed)
    check_folds(out / "folds", made_with)
    for file, reason in cells.damaged.items():
        say(f"{cells.title}: {file} is left out: {reason}")
    if GROUPED not in parts:
        say(f"{cells.title}: no folds by source picture: file names do not tell the pictures, or a class has too few")
    abnormal = np.array([c.side == "positive" for c in cells.classes])[cells.labels]  # (N,)
    work = Work(network, cells.images, tuple(nuclei), abnormal, protocol, seed, workers)
    outcomes = {
        splits: _outcome(work, cells.labels, folds, out / "folds", splits, made_with) for splits, folds in parts.items()
    }
    (short,) = name_encoders(encoder)
    results = Tuned(dataclasses.replace(network.card, name=short), cells, tuple(nuclei), protocol, seed, outcomes)
    config = {
        "encoder": encoder, "set": {name: str(folder)},
        "protocol": json.loads(json.dumps(dataclasses.asdict(protocol))),
        "input_px": input_px, "seed": seed, "device": device, "workers": workers,
    }  # fmt: skip
    write_text(out / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_text(out / "finetune.json", results_json(results))
    write_page(out / "finetune.html", results)
    with run_of_job(out, "finetune", config) as run:
        log_to_wandb(run, results, out / "finetune.html")
    print_table(results)
    say(f"report: {out / 'finetune.html'}")
    return 1 if cells.damaged else 0


def _only(sets: Mapping[str, Path]) -> tuple[str, Path]:
    if len(sets) != 1 or next(iter(sets)) not in CLASSES:
        given = ", ".join(sets) or "none"
        raise UsageError(f"--set: {given} given; give one set, --set.herlev=DIR")
    return next(iter(sets.items()))


def _of_two_sides(cells: CellSet) -> CellSet:
    """Without the classes that are neither normal nor abnormal, as SIPaKMeD's metaplastic cells are."""
    kept = [label for label, c in enumerate(cells.classes) if c.side != "neither"]
    chosen = cells.subset(np.flatnonzero(np.isin(cells.labels, kept)).tolist())
    for c, n in zip(cells.classes, cells.counts(), strict=True):
        if c.side == "neither":
            say(f"{cells.title}: {n} {c.name} cells are left out: they are neither normal nor abnormal")
    classes = tuple(cells.classes[label] for label in kept)
    return dataclasses.replace(chosen, classes=classes, labels=np.searchsorted(kept, chosen.labels).astype(np.int64))


def _with_nuclei(cells: CellSet, folder: Path, folds: int) -> tuple[CellSet, list[Nucleus]]:
    """The cells whose mask shows a nucleus; the others are recorded as damaged."""
    nuclei, problems = read_nuclei(cells)
    kept = [i for i, nucleus in enumerate(nuclei) if nucleus]
    usable = dataclasses.replace(cells.subset(kept), damaged={**cells.damaged, **problems})
    few = [f"{c.name!r} has {n}" for c, n in zip(cells.classes, usable.counts(), strict=True) if n < folds]
    if few:
        raise UsageError(f"{folder}: {', '.join(few)} usable image(s), fewer than --protocol.folds={folds}")
    return usable, [nucleus for nucleus in nuclei if nucleus]


def _at_size(encoder: Encoder, input_px: int | None) -> Encoder:
    """The encoder for another input size; UsageError where it cannot take it."""
    if input_px is None or input_px == encoder.card.input_px:
        return encoder
    network, name = encoder.network, encoder.card.name
    if hasattr(network, "set_input_size"):
        if input_px < 1 or input_px % network.patch_embed.patch_size[0]:
            whole = network.patch_embed.patch_size[0]
            raise UsageError(f"--input_px: {name} cannot take {input_px} px; give a multiple of {whole}")
        network.set_input_size(img_size=(input_px, input_px))
    elif network.default_cfg.get("fixed_input_size") or input_px < 32:
        raise UsageError(f"--input_px: {name} cannot take {input_px} px; leave the option out")
    return Encoder(network, dataclasses.replace(encoder.card, input_px=input_px)).to(encoder.mean.device)


def _folds(cells: CellSet, protocol: DeepPap, seed: int) -> dict[str, list[Part]]:
    """The folds over cells, and those by source picture where the file names tell it and there are enough."""
    abnormal = [c.side == "positive" for c in cells.classes]
    if len({*abnormal}) < 2:
        raise UsageError(f"{cells.title}: all cells are {'abnormal' if abnormal[0] else 'normal'}; give both")
    parts = {UNGROUPED: cross_validation(cells.labels, abnormal, None, protocol.folds, seed)}
    pictures = source_pictures(cells)
    grouped = [] if pictures is None else cross_validation(cells.labels, abnormal, pictures, protocol.folds, seed)
    if grouped:
        parts[GROUPED] = grouped
    return parts


def _made_with(encoder: Encoder, cells: CellSet, nuclei: list[Nucleus], protocol: DeepPap, seed: int) -> dict[str, Any]:
    """All that a fold's scores hang on; which tasks a run has is not among it."""
    numbers = {f"protocol.{key}": value for key, value in dataclasses.asdict(protocol).items() if key != "tasks"}
    made_with = {"encoder": encoder.card.sha256, "input_px": encoder.card.input_px, "seed": seed}
    return {**made_with, "set": checksum(cells, nuclei), **numbers}


def _outcome(
    work: Work, labels: Ints, parts: list[Part], folder: Path, splits: str, made_with: Mapping[str, Any]
) -> Outcome:
    """Every task of one cross-validation; finished folds are taken from `folder`."""
    found: dict[Task, list[FoldScores]] = {}
    for task in work.plan.tasks:
        targets = work.abnormal.astype(np.int64) if task == "binary" else labels
        found[task] = []
        for fold, part in enumerate(parts, 1):
            score = partial(_score, work, part, targets, splits, task, fold)
            scores, new = fold_scores(folder / f"{splits}-{task}-{fold}.json", made_with, score)
            right = 100 * np.mean(scores.scores.argmax(axis=1) == targets[scores.test])
            kept = "" if new else ", kept from an earlier start"
            say(f"{splits}, {task}, fold {fold} of {len(parts)}: {right:.1f} % of the cells right{kept}")
            found[task].append(scores)
    return Outcome(
        binary(found["binary"], work.abnormal, labels) if "binary" in found else None,
        of_classes(found["classes"], labels) if "classes" in found else None,
        {task: [fold.loss for fold in folds] for task, folds in found.items()},
    )


def _score(work: Work, part: Part, targets: Ints, splits: str, task: Task, fold: int) -> FoldScores:
    """Trains one network and tests it; displaced too, where it tells normal from abnormal."""
    train, test = part
    network, losses = fit(work, train, targets, splits, task, fold)
    scores = mean_scores(work, network, test)
    distances = work.plan.displacements if task == "binary" else ()
    displaced = {px: mean_scores(work, network, test, px) for px in distances}
    return FoldScores(test, scores, displaced, tuple(losses))
