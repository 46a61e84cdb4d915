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
from papsmear.probes.classes import CLASSES, TITLES
from papsmear.probes.datasets import CellSet, read_cells
from papsmear.probes.fewshot import Shot, few_shot
from papsmear.probes.protocol import Score, check_ks, knn_probe
from papsmear.probes.report import Results, best_encoder, figures, results_json, write_page
from papsmear.probes.results import HONEST_KNN, Protocol, Result, measure
from papsmear.probes.scores import Spread
from papsmear.probes.wandb_run import log_to_wandb
from papsmear.progress import say, track
from papsmear.ssl.card import EncoderCard
from papsmear.ssl.encoder import Encoder, load_encoder
from papsmear.tracking import start_run

KS = (1, 3, 5, 7, 10, 15, 20, 30)


def probe(
    out: Path,
    encoders: list[str] | dict[str, str] | str,
    sets: dict[str, Path],
    ks: Sequence[int] = KS,
    runs: int = 4,
    seed: int = 0,
    device: str | None = None,
    cache: Path | None = None,
) -> int:
    """Writes the probe report of one or several encoders.

    k-NN, linear and prototype probes on the Herlev and SIPaKMeD cells: F1 of each class, of positives and negatives,
    and weighted, by the published protocol and by honest ones. OUT gets report.html, results.json, config.yaml and the
    W&B run (online with a login).

    Args:
        out: The folder to write to.
        encoders: One encoder, a list of them, or name: encoder pairs. An encoder is timm:ARCHITECTURE,
            random:ARCHITECTURE, hf-hub:REPOSITORY or a .safetensors file.
        sets: Folders of the unpacked sets: herlev, sipakmed, or both (--sets.herlev=DIR).
        ks: The numbers of neighbours to try.
        runs: How many random splits.
        seed: Decides the splits, which are the same for every encoder.
        device: cpu, cuda, … ; a GPU where there is one, if not given.
        cache: Folder to keep features in, for other reports on the same set; OUT/features if not given.
    """
    named = name_encoders(encoders)
    _check(sets, ks, runs)
    cell_sets = {name: read_cells(name, sets[name]) for name in CLASSES if name in sets}
    for cells in cell_sets.values():
        check_ks(ks, cells, seed, runs)
        for file, reason in cells.damaged.items():
            say(f"{cells.title}: {file} is left out: {reason}")
    results = _score(named, cell_sets, ks, runs, seed, device, cache or out / "features")
    config = {
        "encoders": named, "sets": {name: str(folder) for name, folder in sets.items()},
        "ks": list(ks), "runs": runs, "seed": seed, "device": device, "cache": None if cache is None else str(cache),
    }  # fmt: skip
    drawn = figures(results)
    write_text(out / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_text(out / "results.json", results_json(results))
    write_page(out / "report.html", results, drawn)
    cards = {name: json.loads(json.dumps(asdict(card))) for name, card in results.cards.items()}
    with start_run(out, "probe", out.name or "probe", {**config, "cards": cards}) as run:
        log_to_wandb(run, results, drawn, out / "report.html")
    _print_table(results)
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


def _check(sets: dict[str, Path], ks: Sequence[int], runs: int) -> None:
    unknown = [name for name in sets if name not in CLASSES]
    if unknown or not sets:
        what = f"no set is called {unknown[0]!r}" if unknown else "none given"
        raise UsageError(f"--sets: {what}; give {' or '.join(f'--sets.{name}=DIR' for name in CLASSES)}")
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


def _score(
    named: dict[str, str],
    sets: dict[str, CellSet],
    ks: Sequence[int],
    runs: int,
    seed: int,
    device: str | None,
    cache: Path,
) -> Results:
    """Every encoder on every set; an encoder that cannot be read or gives no features is left out and recorded."""
    cards: dict[str, EncoderCard] = {}
    scores: dict[str, dict[str, Score]] = {name: {} for name in sets}
    protocols: dict[str, dict[str, dict[Protocol, Result]]] = {name: {} for name in sets}
    shots: dict[str, dict[str, list[Shot]]] = {name: {} for name in sets}
    failed: dict[str, str] = {}
    for name, encoder in _load(named, device, failed).items():
        try:
            features = {cells.name: features_of(encoder, name, cells, cache) for cells in sets.values()}
        except InputError as error:
            failed[name] = " ".join(str(error).split())
            continue
        cards[name] = encoder.card
        for set_name, cells in track(list(sets.items()), f"{name}: probes"):
            of_set = features[set_name]  # (N, D)
            scores[set_name][name] = knn_probe(of_set, cells, ks, runs, seed)
            protocols[set_name][name] = measure(of_set, cells, ks, runs, seed)
            shots[set_name][name] = few_shot(of_set, cells, runs, seed)
    if not cards:
        raise InputError("no encoder gave features: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))
    return Results(sets, cards, scores, failed, runs, seed, protocols, shots)


def _print_table(results: Results) -> None:
    """Weighted F1 of each encoder and set, on standard output: by the published protocol, and by the honest one."""
    table = Table("encoder", title="Weighted F1, % (k-NN, plain votes)", title_justify="left")
    for name in results.sets:
        table.add_column(f"{TITLES[name]}, as published", justify="right")
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
    """One line for whatever could not be used; the exit status."""
    n_damaged = sum(len(cells.damaged) for cells in results.sets.values())
    for name, reason in results.failed.items():
        say(f"encoder {name} is left out: {reason}")
    if n_damaged:
        say(f"{n_damaged} image(s) could not be read and were left out; they are named above and in the report")
    return 1 if n_damaged or results.failed else 0
