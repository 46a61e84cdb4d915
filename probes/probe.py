"""`papsmear probe`: how good the features of one or several encoders are, on labelled cells.

Each set is read once, each encoder embeds it once, and all scores come from these features.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from papsmear.errors import InputError, UsageError
from papsmear.files import write_text
from papsmear.probes.cache import features_of
from papsmear.probes.datasets import CellSet
from papsmear.probes.fewshot import few_shot
from papsmear.probes.inputs import check_names, duplicate_facts, plain_sources, read_inputs, say_faults
from papsmear.probes.protocol import check_ks, knn_probe
from papsmear.probes.report import Results, best_encoder, figures, results_json, write_page
from papsmear.probes.results import HONEST_KNN, measure
from papsmear.probes.scale import Resize
from papsmear.probes.scores import Spread
from papsmear.probes.sources import SetSource
from papsmear.probes.transfer import cells_to_test, transfer
from papsmear.probes.transfer_tables import print_transfer
from papsmear.probes.wandb_run import log_to_wandb
from papsmear.progress import say, track
from papsmear.ssl.card import check_leak
from papsmear.ssl.encoder import Encoder, load_encoder
from papsmear.tracking import start_run

KS = (1, 3, 5, 7, 10, 15, 20, 30)


def probe(
    out: Path,
    encoders: list[str] | dict[str, str] | str,
    sets: dict[str, SetSource | Path],
    targets: dict[str, SetSource | Path] | None = None,
    ks: Sequence[int] = KS,
    runs: int = 4,
    seed: int = 0,
    device: str | None = None,
    cache: Path | None = None,
    resize: Resize = "whole",
    allow_leak: bool = False,
) -> int:
    """Writes the probe report of one or several encoders.

    k-NN, linear and prototype probes on the Herlev and SIPaKMeD cells: F1 of each class, of positives and negatives,
    and weighted, by the published protocol and by honest ones. OUT gets report.html, results.json, config.yaml and the
    W&B run (online with a login).

    Args:
        out: The folder to write to.
        encoders: One encoder, a list of them, or name: encoder pairs. An encoder is timm:ARCHITECTURE,
            random:ARCHITECTURE, hf-hub:REPOSITORY or a .safetensors file.
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
    """
    named = name_encoders(encoders)
    targets = targets or {}
    check_names(sets, targets)
    _check(ks, runs)
    cell_sets, target_sets = read_inputs(sets, targets, resize)
    for cells in cell_sets.values():
        check_ks(ks, cells, seed, runs)
    failed: dict[str, str] = {}
    loaded = _load(named, device, failed)
    leaks = _leaks(loaded, cell_sets, target_sets, allow_leak)
    duplicates = {name: duplicate_facts(cells, runs, seed) for name, cells in cell_sets.items()}
    for name, cells in (cell_sets | target_sets).items():
        say_faults(cells, duplicates.get(name))
    results = Results(
        sets=cell_sets, cards={}, scores={}, failed=failed, runs=runs, seed=seed, protocols={}, few_shot={},
        duplicates=duplicates, targets=target_sets, leaks=leaks, resize=resize,
    )  # fmt: skip
    _score(loaded, results, ks, cache or out / "features", allow_leak)
    config = {
        "encoders": named, "sets": plain_sources(sets), "targets": plain_sources(targets),
        "ks": list(ks), "runs": runs, "seed": seed, "device": device, "cache": None if cache is None else str(cache),
        "resize": resize, "allow_leak": allow_leak,
    }  # fmt: skip
    drawn = figures(results)
    write_text(out / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_text(out / "results.json", results_json(results))
    write_page(out / "report.html", results, drawn)
    cards = {name: json.loads(json.dumps(asdict(card))) for name, card in results.cards.items()}
    with start_run(out, "probe", out.name or "probe", {**config, "cards": cards}) as run:
        log_to_wandb(run, results, drawn, out / "report.html")
    _print_table(results)
    print_transfer(results.transfer)
    say(f"report: {out / 'report.html'}")
    return _say_failures(results)


def name_encoders(encoders: list[str] | dict[str, str] | str) -> dict[str, str]:
    """Gives each encoder a short name for tables: its own, the file's, or for `encoder.safetensors` its folder's."""
    if isinstance(encoders, dict):
        named = dict(encoders)
    else:
        listed = [encoders] if isinstance(encoders, str) else encoders
        names = [_short_name(encoder) for encoder in listed]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(
                f"--encoders: two of them would be called {twice[0]!r}; name them: --encoders '{{first: …, second: …}}'"
            )
        named = dict(zip(names, listed, strict=True))
    if not named:
        raise UsageError("--encoders: none given; name at least one, such as --encoders random:resnet50")
    return named


def _short_name(encoder: str) -> str:
    path = Path(encoder)
    if path.suffix != ".safetensors":
        return encoder
    return path.absolute().parent.name if path.stem == "encoder" else path.stem


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
        for set_name, cells in track(list(sets.items()), f"{name}: probes"):
            of_set = features[set_name]  # (N, D)
            results.scores[set_name][name] = knn_probe(of_set, cells, ks, runs, seed)
            results.protocols[set_name][name] = measure(of_set, cells, ks, runs, seed)
            results.few_shot[set_name][name] = few_shot(of_set, cells, runs, seed)
        results.transfer.extend(transfer(name, encoder.card, features, sets, targets, ks, seed, allow_leak))
    if not results.cards:
        every_reason = "; ".join(f"{name}: {why}" for name, why in results.failed.items())
        raise InputError(f"no encoder gave features: {every_reason}")


def _print_table(results: Results) -> None:
    """Weighted F1 of each encoder and set, on standard output: by the published protocol, and by the honest one."""
    table = Table("encoder", title="Weighted F1, % (k-NN, plain votes)", title_justify="left")
    for name in results.sets:
        table.add_column(f"{results.sets[name].title}, as published", justify="right")
        table.add_column("k", justify="right")
        table.add_column("honest", justify="right")
    for encoder in results.cards:
        row = [encoder]
        for name, found in results.scores.items():
            score, honest = found[encoder], results.protocols[name][encoder].get(HONEST_KNN)
            bold = "[bold]" if encoder == best_encoder(found) else ""
            row += [
                f"{bold}{_percent(score.weighted_f1)}",
                str(score.k),
                _percent(honest.weighted_f1) if honest else "–",
            ]
        table.add_row(*row)
    table.caption = (
        "as published: random splits, k chosen on the test part; honest: splits by source picture, k chosen inside the "
        "training part"
    )
    Console().print(table)


def _percent(spread: Spread) -> str:
    return f"{100 * spread.mean:.1f} ± {100 * spread.sd:.1f}"


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
