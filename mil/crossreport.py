"""The table of a cross-validation: crossval.json, crossval.html, the terminal, and W&B.

A head by an encoder is a row. Its AUC is the mean ± sd over folds, as published without the first fold, which tunes,
and over all. All other figures count the slides of all folds, each judged by the head that had not seen it.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from papsmear import __version__
from papsmear.files import write_text
from papsmear.mil.comparison import Comparison, comparisons
from papsmear.mil.evaluation import TITLES, bracket, number
from papsmear.mil.plots import auc_figure, pixels, reliability_figure, roc_figure
from papsmear.mil.runs import System
from papsmear.page import figure_uri, render

if TYPE_CHECKING:
    import wandb


@dataclass(frozen=True)
class Results:
    """What a cross-validation found; `failed` says why a run gave no result, by the name of its folder."""

    systems: list[System]
    tuning_fold: int
    folds: list[int]
    failed: dict[str, str]

    @property
    def leak(self) -> bool:
        """Whether an encoder or a head had seen slides that it was tested on."""
        return any(system.leak for system in self.systems)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every two heads of an encoder, and every two encoders of a head, over all folds."""
        return comparisons(self.systems)

    def reporting(self, system: System) -> System | None:
        """The system on the folds that report, as published."""
        return system.without(self.tuning_fold)


def spread(system: System | None) -> dict[str, Any] | None:
    """Mean and sd over folds of a system's AUC; the sd of one fold is None."""
    if system is None:
        return None
    aucs = list(system.aucs().values())
    sd = float(np.std(aucs, ddof=1)) if len(aucs) > 1 else None
    return {"mean": float(np.mean(aucs)), "sd": sd, "folds": list(system.tests)}


def facts(results: Results) -> dict[str, Any]:
    """crossval.json: of each system the AUC without the tuning fold and over all, its figures, its folds' tests."""
    rows = []
    for system in results.systems:
        row = {"encoder": system.encoder, "head": system.head, "leak": system.leak}
        row |= {"auc_as_published": spread(results.reporting(system)), "auc_all_folds": spread(system)}
        rows.append(row | {"all_folds": system.evaluation.facts(), "tests": [t.facts for t in system.tests.values()]})
    return {
        "papsmear": __version__,
        "leak": results.leak,
        "tuning_fold": results.tuning_fold,
        "folds": results.folds,
        "failed": results.failed,
        "systems": rows,
        "comparisons": [comparison.facts() for comparison in results.comparisons],
    }


def write_results(out: Path, results: Results, run: "wandb.Run | None" = None) -> None:
    """Writes crossval.json and crossval.html, logs them, and prints the table."""
    told = facts(results)
    write_text(out / "crossval.json", json.dumps(told, indent=1) + "\n")
    write_text(out / "crossval.html", _page(results))
    if run is not None:
        _log(run, out, results)
    Console().print(_table(results))


def _table(results: Results) -> Table:
    title = f"{'LEAK ' if results.leak else ''}cross-validation, AUC mean ± sd over folds"
    shown = Table("encoder", "head", title=title, title_justify="left")
    for name in (f"without fold {results.tuning_fold}", "all folds", "95 %", "sensitivity", "specificity"):
        shown.add_column(name, justify="right")
    for system in results.systems:
        e = system.evaluation
        shown.add_row(
            system.encoder or "–",
            ("LEAK " if system.leak else "") + system.head,
            _told(spread(results.reporting(system))),
            _told(spread(system)),
            bracket(e.auc_delong),
            number(e.shares["sensitivity"].value),
            number(e.shares["specificity"].value),
        )
    return shown


def _told(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"{found['mean']:.3f}" + ("" if found["sd"] is None else f" ± {found['sd']:.3f}")


def _page(results: Results) -> str:
    rows = [
        {
            "system": system,
            "published": spread(results.reporting(system)),
            "all": spread(system),
            "aucs": system.aucs(),
            "e": system.evaluation,
            "reliability": figure_uri(reliability_figure(system.evaluation.reliability)),
            "folders": {
                fold: "-".join(filter(None, (system.encoder, system.head, f"fold{fold}"))) for fold in system.tests
            },
        }
        for system in results.systems
    ]
    return render(
        "mil/crossval.html",
        r=results,
        rows=rows,
        titles=TITLES,
        aucs=figure_uri(auc_figure({s.name: s.aucs() for s in results.systems}, results.tuning_fold)),
        roc=figure_uri(roc_figure({s.name: s.verdicts for s in results.systems})),
        version=__version__,
    )


def _log(run: "wandb.Run", out: Path, results: Results) -> None:
    import wandb

    mark = "LEAK " if results.leak else ""
    columns = [
        "encoder",
        "head",
        "fold",
        "auc",
        "average_precision",
        "sensitivity",
        "specificity",
        "threshold",
        "brier",
    ]
    lines = [
        [system.encoder, system.head, *(test.facts[name] for name in columns[2:])]
        for system in results.systems
        for test in system.tests.values()
    ]
    pairs = [
        [
            c.first.name,
            c.second.name,
            c.delong.value,
            *(c.delong.interval or (None, None)),
            c.delong.p,
            *(c.bootstrap or (None, None)),
        ]
        for c in results.comparisons
    ]
    for system in results.systems:
        for name, of in (("as_published", results.reporting(system)), ("all_folds", system)):
            for key, value in (spread(of) or {}).items():
                if key != "folds":
                    run.summary[f"{mark}{system.name}/auc_{name}_{key}"] = value
    run.log({
        f"{mark}crossval/tests": wandb.Table(columns=[*columns], data=lines),
        f"{mark}crossval/comparisons": wandb.Table(
            columns=["first", "second", "difference", "low", "high", "p", "bootstrap_low", "bootstrap_high"], data=pairs
        ),
        f"{mark}crossval/auc": wandb.Image(
            pixels(auc_figure({s.name: s.aucs() for s in results.systems}, results.tuning_fold))
        ),
        f"{mark}crossval/roc": wandb.Image(pixels(roc_figure({s.name: s.verdicts for s in results.systems}))),
    })  # fmt: skip
    artifact = wandb.Artifact(f"crossval-{run.id}", type="report")
    artifact.add_file(str(out / "crossval.html"))
    run.log_artifact(artifact)
