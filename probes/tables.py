"""The figures of every protocol as rows, for results.json, W&B and the page alike; shares of 1."""

from collections.abc import Mapping
from typing import Any

from papsmear.probes.bootstrap import Interval
from papsmear.probes.differences import differences
from papsmear.probes.fewshot import Shot
from papsmear.probes.results import Protocol, Result
from papsmear.probes.scores import WEIGHTED, Spread

ByEncoder = Mapping[str, Mapping[Protocol, Result]]


def spread_facts(spread: Spread, interval: Interval | None = None) -> dict[str, Any]:
    """Mean, sd and the single runs, and the bootstrap 95 % interval where there is one."""
    facts: dict[str, Any] = {"mean": spread.mean, "sd": spread.sd, "runs": list(spread.runs)}
    return facts if interval is None else {**facts, "interval_95": list(interval)}


def protocol_facts(protocol: Protocol) -> dict[str, Any]:
    """What a protocol is, and whether it is the published one or an honest one."""
    return {
        "splits": protocol.splits,
        "probe": protocol.probe,
        "chosen": protocol.chosen,
        "as_published": protocol.as_published,
        "honest": protocol.honest,
    }


def protocol_rows(sets: Mapping[str, ByEncoder]) -> list[dict[str, Any]]:
    """A row for each set, encoder and protocol, with every score."""
    return [
        {
            "set": name,
            "encoder": encoder,
            **protocol_facts(protocol),
            "picks": list(result.picks),
            "weighted_f1": spread_facts(result.weighted_f1, result.intervals[WEIGHTED]),
            "class_f1": {row: spread_facts(s, result.intervals[row]) for row, s in result.class_f1.items()},
            "side_f1": {row: spread_facts(s, result.intervals[row]) for row, s in result.side_f1.items()},
        }
        for name, encoders in sets.items()
        for encoder, results in encoders.items()
        for protocol, result in results.items()
    ]


def difference_rows(sets: Mapping[str, ByEncoder]) -> list[dict[str, Any]]:
    """A row for each set, pair of encoders and protocol: weighted F1 of the first minus that of the second."""
    return [
        {
            "set": name,
            "first": found.first,
            "second": found.second,
            **protocol_facts(found.protocol),
            "mean": found.mean,
            "interval_95": list(found.interval),
            "clear": found.clear,
        }
        for name, encoders in sets.items()
        for found in differences(encoders)
    ]


def few_shot_rows(sets: Mapping[str, Mapping[str, list[Shot]]]) -> list[dict[str, Any]]:
    """A row for each set, encoder, probe and amount of training cells."""
    return [
        {
            "set": name,
            "encoder": encoder,
            "splits": shot.splits,
            "probe": shot.probe,
            "amount": shot.amount,
            "cells": shot.cells,
            "weighted_f1": spread_facts(shot.weighted_f1),
        }
        for name, encoders in sets.items()
        for encoder, shots in encoders.items()
        for shot in shots
    ]


def flat(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a plain table: figures become mean, sd, low and high, lists text; scores by class go."""
    lines = []
    for row in rows:
        line: dict[str, Any] = {}
        for key, value in row.items():
            if key == "interval_95":
                line |= {"low": value[0], "high": value[1]}
            elif key == "weighted_f1":
                line |= {"mean": value["mean"], "sd": value["sd"]}
                if "interval_95" in value:
                    line |= {"low": value["interval_95"][0], "high": value["interval_95"][1]}
            elif isinstance(value, list):
                line[key] = ", ".join(f"{item:g}" for item in value)
            elif not isinstance(value, dict):
                line[key] = value
        lines.append(line)
    return list(lines[0]) if lines else [], [list(line.values()) for line in lines]
