"""Figures over folds' encoders: one pretraining a held-out fold, each encoder probed by itself.

The sd over folds' encoders says what another pretraining would have given; the sd over runs, beside it, what other
splits of the cells would have. It is that of the folds' encoders together, the root of their mean variance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from papsmear.probes.names import Folds
from papsmear.probes.results import Protocol, Result
from papsmear.probes.scores import WEIGHTED, Spread
from papsmear.probes.tables import ByEncoder, protocol_facts
from papsmear.probes.transfer import METRICS, Transferred


@dataclass(frozen=True)
class FoldSpread:
    """One score over the folds' encoders, as a share of 1: `folds` has each encoder's own mean over the runs."""

    folds: tuple[float, ...]
    sd_runs: float | None

    @property
    def mean(self) -> float:
        return Spread(self.folds).mean

    @property
    def sd(self) -> float:
        """The sample standard deviation over the folds' encoders."""
        return Spread(self.folds).sd

    def facts(self) -> dict[str, Any]:
        """For results.json."""
        return {"mean": self.mean, "sd_folds": self.sd, "sd_runs": self.sd_runs, "folds": list(self.folds)}


def over_folds(results: Sequence[Result]) -> dict[str, FoldSpread]:
    """Every score of one protocol, by class, side or `weighted F1`, over the results of the folds' encoders."""
    rows = [result.class_f1 | result.side_f1 | {WEIGHTED: result.weighted_f1} for result in results]
    return {
        name: FoldSpread(
            tuple(row[name].mean for row in rows), float(np.sqrt(np.mean([row[name].sd ** 2 for row in rows])))
        )
        for name in rows[0]
    }


def of_set(results: Mapping[str, Mapping[Protocol, Result]], folds: Folds) -> dict[str, dict[Protocol, Any]]:
    """Name that stands for folds' encoders → protocol → scores over those of them that gave results on a set."""
    found = {}
    for name, members in folds.items():
        there = [results[member] for member in members if member in results]
        if there:
            found[name] = {protocol: over_folds([of[protocol] for of in there]) for protocol in there[0]}
    return found


def fold_rows(sets: Mapping[str, ByEncoder], folds: Folds) -> list[dict[str, Any]]:
    """A row for each set, name that stands for folds' encoders, and protocol."""
    return [
        {
            "set": set_name,
            "encoder": encoder,
            "of": [member for member in folds[encoder] if member in results],
            **protocol_facts(protocol),
            "scores": {name: spread.facts() for name, spread in spreads.items()},
        }
        for set_name, results in sets.items()
        for encoder, protocols in of_set(results, folds).items()
        for protocol, spreads in protocols.items()
    ]


def transfer_fold_rows(found: Sequence[Transferred], folds: Folds) -> list[dict[str, Any]]:
    """The same of the transfer: a row for each such name, fitting set and target; each encoder tested as it may be."""
    rows = []
    for encoder, members in folds.items():
        fits: dict[tuple[tuple[str, ...], str], list[Transferred]] = {}
        for row in found:
            if row.encoder in members:
                fits.setdefault((row.fit, row.target), []).append(row)
        for (fit, target), of_folds in fits.items():
            scores = {
                metric: FoldSpread(tuple(row.scores[metric][0] for row in of_folds), None).facts()
                for metric in METRICS
                if all(metric in row.scores for row in of_folds)
            }
            of = [row.encoder for row in of_folds]
            rows.append({"encoder": encoder, "of": of, "fit": list(fit), "target": target, "scores": scores})
    return rows
