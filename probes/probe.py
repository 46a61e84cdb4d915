"""`papsmear probe`: how good the features of one or several encoders are, on labelled cells.

Each set is read once, each encoder embeds it once, and all scores come from these features.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import yaml

from papsmear.errors import InputError, UsageError
from papsmear.files import whole, write_text
from papsmear.probes.cache import features_of
from papsmear.probes.compare import compare_reports
from papsmear.probes.datasets import CellSet
from papsmear.probes.fewshot import few_shot
from papsmear.probes.inputs import check_names, duplicate_facts, plain_sources, read_inputs, say_faults
from papsmear.probes.knn import Neighbourhoods
from papsmear.probes.names import References, name_encoders, with_folds
from papsmear.probes.pages import figures, write_page
from papsmear.probes.protocol import check_ks, knn_probe
from papsmear.probes.report import BOOTSTRAP, Results, resampled, results_json
from papsmear.probes.results import measure
from papsmear.probes.scale import Resize
from papsmear.probes.sources import SetSource
from papsmear.probes.terminal import print_table
from papsmear.probes.transfer import cells_to_test, transfer
from papsmear.probes.transfer_tables import print_transfer
from papsmear.probes.wandb_report import write_report
from papsmear.probes.wandb_run import log_to_wandb
from papsmear.progress import say, track
from papsmear.ssl.card import check_leak
from papsmear.ssl.encoder import Encoder, load_encoder
from papsmear.tracking import run_of, run_of_job

KS = (1, 3, 5, 7, 10, 15, 20, 30)


def probe(
    out: Path,
    encoders: References = None,
    sets: dict[str, SetSource | Path] | None = None,
    targets: dict[str, SetSource | Path] | None = None,
    ks: Sequence[int] = KS,
    runs: int = 4,
    seed: int = 0,
    device: str | None = None,
    cache: Path | None = None,
    resize: Resize = "whole",
    allow_leak: bool = False,
    report: bool = False,
    compare: list[Path] | None = None,
) -> int:
    """Writes the probe report of one or several encoders, or puts reports side by side: --compare A B --out DIR.

    k-NN, linear and prototype probes on the Herlev and SIPaKMeD cells: F1 of each class, of positives and negatives,
    and weighted, by the published protocol and by honest ones. OUT gets report.html, results.json, config.yaml and the
    W&B run (online with a login).

    Args:
        out: The folder to write to.
        encoders: One encoder, a list of them, or name: encoder pairs. An encoder is timm:ARCHITECTURE,
            random:ARCHITECTURE, hf-hub:REPOSITORY or a .safetensors file. A file with {fold} in its path, or a list
            under a name, stands for the encoders of several folds: mean ± sd over them stands beside each.
        sets: Folders of the unpacked sets, herlev or sipakmed (--sets.herlev=DIR), and sets of your own: a csv, or
            --sets.mine="{path: DIR, classes: {LSIL: positive, NILM: negative}}".
        targets: Sets of your own that probes fitted on the public ones are tested on, such as cells and tiles of
            papsmear crop (--targets.cells=sets/cells.csv).
        ks: The numbers of neighbours to try.
        runs: How many random splits.
        seed: Decides the splits, which are the same for every encoder.
        device: cpu, cuda, … ; a GPU where there is one, if not given.
        cache: Folder to keep features in, for other reports on the same set; OUT/features if not given.
        resize: whole: images are resized whole to the encoder's input, as published; mpp: they are brought to its
            µm/px, then cut or padded.
        allow_leak: Test an encoder on slides that it was trained on too; the figures are marked.
        report: Also write a W&B Report page; needs a login.
        compare: Reports that are there already, folders or their results.json, to put side by side: OUT gets
            compare.html and compare.json, and nothing is probed.
    """
    if compare is not None:
        if encoders or sets or targets:
            raise UsageError("--compare: takes reports that are there already; leave out -c, --encoders and --sets")
        return compare_reports(compare, out)
    named = name_encoders(encoders)
    single, folds = with_folds(named)
    sets, targets = sets or {}, targets or {}
    check_names(sets, targets)
    _check(ks, runs)
    cell_sets, target_sets = read_inputs(sets, targets, resize)
    for cells in cell_sets.values():
        check_ks(ks, cells, seed, runs)
    failed: dict[str, str] = {}
    loaded = _load(single, device, failed)
    leaks = _leaks(loaded, cell_sets, target_sets, allow_leak)
    duplicates = {name: duplicate_facts(cells, runs, seed) for name, cells in cell_sets.items()}
    for name, cells in (cell_sets | target_sets).items():
        say_faults(cells, duplicates.get(name))
    results = Results(
        sets=cell_sets, cards={}, scores={}, failed=failed, runs=runs, seed=seed, protocols={}, few_shot={},
        duplicates=duplicates, targets=target_sets, leaks=leaks, resize=resize, folds=folds,
        pretraining=_pretraining(single),
    )  # fmt: skip
    _score(loaded, results, ks, cache or out / "features", allow_leak)
    config = {
        "encoders": named, "sets": plain_sources(sets), "targets": plain_sources(targets),
        "ks": list(ks), "runs": runs, "seed": seed, "device": device, "cache": None if cache is None else str(cache),
        "resize": resize, "allow_leak": allow_leak, "report": report,
    }  # fmt: skip
    drawn = figures(results)
    write_text(out / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_text(out / "results.json", results_json(results))
    write_page(out / "report.html", results, drawn)
    memory = io.BytesIO()
    np.save(memory, resampled(results.protocols))
    with whole(out / BOOTSTRAP) as part:
        part.write_bytes(memory.getvalue())
    cards = {name: json.loads(json.dumps(asdict(card))) for name, card in results.cards.items()}
    told = {**config, "cards": cards, "pretraining": results.pretraining}
    files = [out / name for name in ("report.html", "results.json", BOOTSTRAP)]
    with run_of_job(out, "probe", told) as run:
        log_to_wandb(run, results, drawn, files)
        if report:
            write_report(run, results)
    print_table(results)
    print_transfer(results.transfer)
    say(f"report: {out / 'report.html'}")
    return _say_failures(results)


def _check(ks: Sequence[int], runs: int) -> None:
    if not ks or min(ks) < 1:
        raise UsageError(f"--ks: {list(ks)}: give whole numbers from 1 on, such as '[1, 5, 10, 20]'")
    if runs < 1:
        raise UsageError(f"--runs: {runs}: give at least 1")


def _load(named: dict[str, str], device: str | None, failed: dict[str, str]) -> dict[str, Encoder]:
    """All encoders, before any work: a misspelt one is refused at once, one that cannot be read is recorded."""
    loaded = {}
    for name, reference in named.items():
        try:
            loaded[name] = load_encoder(reference, device)
        except InputError as error:
            failed[name] = " ".join(str(error).split())
    return loaded


def _pretraining(named: dict[str, str]) -> dict[str, dict[str, str]]:
    """The W&B run of each encoder whose file lies in the run folder of its pretraining."""
    found = {}
    for name, reference in named.items():
        if reference.endswith(".safetensors") and (run := run_of(Path(reference).absolute().parent)):
            found[name] = run
    return found


def _leaks(
    encoders: dict[str, Encoder], sets: dict[str, CellSet], targets: dict[str, CellSet], allow_leak: bool
) -> dict[str, list[str]]:
    """The encoders that were trained on slides of a set, by its name; UsageError where that is not allowed."""
    leaks: dict[str, list[str]] = {}
    for name, encoder in encoders.items():
        for cells in targets.values():
            cells_to_test(encoder.card, cells, allow_leak)
        for set_name, cells in sets.items():
            if check_leak(encoder.card, set(cells.slides) - {""}, allow_leak):
                leaks.setdefault(set_name, []).append(name)
    return leaks


def _score(encoders: dict[str, Encoder], results: Results, ks: Sequence[int], cache: Path, allow_leak: bool) -> None:
    """Every encoder on every set, into `results`; one that gives no features is recorded."""
    sets, targets, runs, seed = results.sets, results.targets, results.runs, results.seed
    for of_sets in (results.scores, results.protocols, results.few_shot):
        of_sets.update({name: {} for name in sets})
    for name, encoder in encoders.items():
        try:
            every = (*sets.values(), *targets.values())
            features = {cells.name: features_of(encoder, name, cells, cache, results.resize) for cells in every}
        except InputError as error:
            results.failed[name] = " ".join(str(error).split())
            continue
        results.cards[name] = encoder.card
        results.features[name] = features
        for set_name, cells in track(list(sets.items()), f"{name}: probes"):
            of_set = features[set_name]  # (N, D)
            near = Neighbourhoods.of(of_set, max(ks))
            results.scores[set_name][name] = knn_probe(of_set, cells, ks, runs, seed, near)
            results.protocols[set_name][name] = measure(of_set, cells, ks, runs, seed, near)
            results.few_shot[set_name][name] = few_shot(of_set, cells, runs, seed)
        results.transfer.extend(transfer(name, encoder.card, features, sets, targets, ks, seed, allow_leak))
    if not results.cards:
        every_reason = "; ".join(f"{name}: {why}" for name, why in results.failed.items())
        raise InputError(f"no encoder gave features: {every_reason}")


def _say_failures(results: Results) -> int:
    """One line for whatever could not be used, or must not be trusted; the exit status."""
    n_damaged = sum(len(cells.damaged) for cells in (*results.sets.values(), *results.targets.values()))
    for name, encoders in results.leaks.items():
        say(f"LEAK: {', '.join(encoders)} saw slides of {name} in training; the figures on it are too good")
    for name, reason in results.failed.items():
        say(f"encoder {name} is left out: {reason}")
    if n_damaged:
        say(f"{n_damaged} image(s) could not be read and were left out; they are named above and in the report")
    return 1 if n_damaged or results.failed else 0
