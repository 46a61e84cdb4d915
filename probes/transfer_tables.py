"""The transfer figures as rows, for results.json, the page and W&B alike; shares of 1."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from papsmear.probes import published
from papsmear.probes.datasets import CellSet
from papsmear.probes.transfer import METRICS, Transferred, sides


def fit_name(fit: tuple[str, ...]) -> str:
    """What a probe was fitted on, as `published.TRANSFER` names it: `herlev + sipakmed`."""
    return " + ".join(fit)


def transfer_rows(found: Iterable[Transferred]) -> list[dict[str, Any]]:
    """A row for each encoder, fitting set and target; `interval_95` is null where there are fewer than two slides."""
    return [
        {
            "encoder": row.encoder,
            "fit": list(row.fit),
            "target": row.target,
            "probe": "k-NN, plain votes",
            "k": row.k,
            "chosen": "inside the fitting set",
            "positives": row.n_positive,
            "negatives": row.n_negative,
            "slides": row.n_slides,
            "fold": row.fold,
            "leak": row.leak,
            **{
                name: {"value": value, "interval_95": None if interval is None else list(interval)}
                for name, (value, interval) in row.scores.items()
            },
        }
        for row in found
    ]


def flat_transfer(found: Iterable[Transferred]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a plain table, each metric with the ends of its interval."""
    ends = [f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")]
    columns = ["encoder", "fit", "target", "k", "positives", "negatives", "slides", "fold", "leak", *ends]
    lines = []
    for row in found:
        line = [row.encoder, fit_name(row.fit), row.target, row.k, row.n_positive, row.n_negative]
        line += [row.n_slides, row.fold, row.leak]
        for metric in METRICS:
            value, interval = row.scores.get(metric, (None, None))
            line += [value, *(interval or (None, None))]
        lines.append(line)
    return columns, lines


def published_transfer(targets: Iterable[str]) -> dict[str, dict[str, dict[str, float]]]:
    """The study's own sensitivities, in percent: target → fitted on → encoder, for targets that it had."""
    return {target: published.TRANSFER[target] for target in targets if target in published.TRANSFER}


def print_transfer(found: Sequence[Transferred]) -> None:
    """The figures on standard output; nothing where there are none."""
    if not found:
        return
    table = Table("encoder", "fitted on", "tested on", title="Transfer, % (k-NN, plain votes)", title_justify="left")
    for column in ("k", *METRICS):
        table.add_column(column, justify="right")
    for row in found:
        figures = [f"{100 * row.scores[metric][0]:.1f}" if metric in row.scores else "–" for metric in METRICS]
        target = f"{row.target}{' LEAK' if row.leak else ''}"
        table.add_row(row.encoder, fit_name(row.fit), target, str(row.k), *figures)
    table.caption = "k chosen inside the fitting set; sensitivity is what the study publishes"
    Console().print(table)


def page_targets(found: Iterable[Transferred], targets: Mapping[str, CellSet]) -> list[dict[str, Any]]:
    """What the page shows of each target: its rows by what was fitted on, and the published sensitivities."""
    shown = []
    for name, cells in targets.items():
        fits: dict[str, list[Transferred]] = {}
        for row in found:
            if row.target == name:
                fits.setdefault(fit_name(row.fit), []).append(row)
        theirs = published.TRANSFER.get(name, {})
        truth = sides(cells)[1]
        shown.append({
            "title": cells.title, "damaged": cells.damaged, "fits": fits, "published": theirs,
            "published_encoders": list(next(iter(theirs.values()), {})),
            "positives": int(truth.sum()), "negatives": int((1 - truth).sum()),
            "leak": any(row.leak for rows in fits.values() for row in rows),
        })  # fmt: skip
    return shown
