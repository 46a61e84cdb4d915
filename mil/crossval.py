"""`papsmear crossval`: heads by encoders by folds, each trained and tested in one process, into one table.

As published, the first fold tunes and the others report: mean ± sd without it stands beside that of all folds. Every
run is the one that `lightning fit` and `lightning test` give, in a folder OUT/<encoder>-<head>-fold<k> of its own, so
that jobs of slurm/mil.sbatch can do the runs and this command only the table.
"""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from papsmear.cohort import Slide, folds_of, read_slides
from papsmear.errors import InputError, UsageError
from papsmear.mil.crossreport import Results, write_results
from papsmear.mil.runs import Run, System
from papsmear.progress import say
from papsmear.tracking import run_of_job

Settings = dict[str, Any]


def crossval(
    out: Path,
    model: Settings,
    data: Settings,
    trainer: Settings | None = None,
    seed_everything: int = 0,
    heads: list[str] | dict[str, Settings] | None = None,
    encoders: list[str] | None = None,
    folds: list[int] | None = None,
) -> int:
    """Cross-validates slide diagnosis over the folds of slides.csv, with one or several heads and encoders.

    Trains and tests every head on the bags of every encoder with each fold held out, and writes the figures of all to
    the output folder: crossval.html, crossval.json. What is finished is not run again. Research use only.

    Args:
        out: Folder for the runs and the table.
        model: The model of configs/mil.yaml.
        data: The data of configs/mil.yaml; in `features`, {fold} and {encoder} stand for the fold and encoder's name.
        trainer: The trainer of configs/mil.yaml.
        seed_everything: As in configs/mil.yaml.
        heads: Names of heads, or a name for each set of changes to the model: {topk: {head: mean, lr: 1.0e-4}}.
        encoders: Names to put in the place of {encoder} in data.features.
        folds: The folds to hold out; not given, all.

    Returns:
        0, or 1 where a run failed; the others are done nonetheless.
    """
    model, data = _plain(model), _plain(data)
    for key in ("slides", "features"):
        if key not in data["init_args"]:
            raise UsageError(f"data.{key} is missing; give it as in configs/mil.yaml")
    slides_csv = Path(data["init_args"]["slides"])
    slides = read_slides(slides_csv, need_files=False)
    known = folds_of(slides_csv, [slide for slide in slides if slide.label is not None])
    if not known or (beyond := sorted(set(folds or []) - set(known))):
        told = f"--folds: no fold {beyond[0]} in it" if known else "no labelled slide has a fold"
        raise UsageError(f"{slides_csv}: {told}; papsmear split adds the column")
    whole: Settings = {"seed_everything": seed_everything, "trainer": trainer or {}, "model": model, "data": data}
    runs = _runs(out, whole, _variants(heads, model), encoders or [""], folds or known)
    failed = _run_all(runs)
    systems = _systems(runs, slides, failed)
    if not systems:
        raise InputError(f"no run was finished: {'; '.join(f'{name}: {why}' for name, why in failed.items())}")
    results = Results(
        systems, known[0], sorted({run.fold for run in runs}), {name: str(why) for name, why in failed.items()}
    )
    if whole["trainer"].get("logger") is False:
        write_results(out, results)
    else:
        with run_of_job(out, "crossval", {"model": model, "data": data}) as wandb_run:
            write_results(out, results, wandb_run)
    for name, why in failed.items():
        say(f"failed: {name}: {why}")
    return 1 if failed else 0


def _plain(part: Settings) -> Settings:
    """A part of the configuration with all arguments under init_args, where `--model.lr` puts them beside."""
    beside = {key: value for key, value in part.items() if key not in ("class_path", "init_args")}
    if "class_path" not in part:
        raise UsageError("crossval needs the configuration of a training: papsmear crossval -c configs/mil.yaml")
    return {"class_path": part["class_path"], "init_args": {**(part.get("init_args") or {}), **beside}}


def _variants(heads: Sequence[str] | Mapping[str, Settings] | None, model: Settings) -> dict[str, Settings]:
    """The changes to the model by the name of each variant."""
    if not heads:
        return {model["init_args"].get("head", "gated_attention"): {}}
    if isinstance(heads, Mapping):
        return dict(heads)
    if len(heads) > 1 and model["init_args"].get("head_args"):
        raise UsageError(
            "model.head_args suit one head; for several give --heads as {name: {head: NAME, head_args: {...}}}"
        )
    return {name: {"head": name} for name in heads}


def _runs(
    out: Path, whole: Settings, variants: Mapping[str, Settings], encoders: Sequence[str], folds: Sequence[int]
) -> list[Run]:
    pattern = str(whole["data"]["init_args"]["features"])
    if ("{encoder}" in pattern) != any(encoders):
        raise UsageError(
            f"data.features={pattern} and --encoders={list(filter(None, encoders))}: give names in --encoders, and "
            "{encoder} where the name stands in the folder of its bags, such as features/{encoder}-fold{fold}"
        )
    runs = []
    for encoder in encoders:
        for name, changes in variants.items():
            for fold in folds:
                folder = out / "-".join(filter(None, (encoder, name, f"fold{fold}")))
                features = pattern.replace("{encoder}", encoder).replace("{fold}", str(fold))
                settings = {
                    "seed_everything": whole["seed_everything"],
                    "trainer": whole["trainer"] | {"default_root_dir": str(folder)},
                    "model": _with(whole["model"], changes),
                    "data": _with(whole["data"], {"features": features, "fold": fold}),
                }
                runs.append(Run(folder, encoder, name, fold, settings))
    return runs


def _with(part: Settings, changes: Settings) -> Settings:
    return {"class_path": part["class_path"], "init_args": part["init_args"] | changes}


def _run_all(runs: Sequence[Run]) -> dict[str, InputError]:
    """Does the runs that are not finished; why some failed, by the name of their folder."""
    left = [run for run in runs if not run.finished()]
    say(f"{len(runs)} runs, {len(runs) - len(left)} of them finished before")
    failed = {}
    for number, run in enumerate(left, 1):
        say(f"run {number} of {len(left)}: {run.folder.name}")
        try:
            run.run()
        except InputError as error:
            failed[run.folder.name] = error
        gc.collect()  # Lightning's trainer and its data point at each other: the bags of each run would stay in memory
    return failed


def _systems(runs: Sequence[Run], slides: Sequence[Slide], failed: Mapping[str, InputError]) -> list[System]:
    found: dict[tuple[str, str], dict[int, Any]] = {}
    for run in runs:
        if run.folder.name not in failed:
            found.setdefault((run.encoder, run.head), {})[run.fold] = run.read(slides)
    return [System(encoder, head, tests) for (encoder, head), tests in found.items()]
