"""What a probe run found, and its `results.json`; the page is made of the same in pages.py.

The file's schema, its first key, counts up when what readers rely on changes; results.schema.json describes it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from papsmear import __version__
from papsmear.probes import published
from papsmear.probes.cache import set_checksum
from papsmear.probes.datasets import CellSet
from papsmear.probes.fewshot import Shot
from papsmear.probes.foldspread import fold_rows, transfer_fold_rows
from papsmear.probes.knn import Floats
from papsmear.probes.names import Folds
from papsmear.probes.protocol import Score
from papsmear.probes.results import Protocol, Result
from papsmear.probes.scale import Resize
from papsmear.probes.splits import TEST_SHARE, source_pictures
from papsmear.probes.tables import difference_rows, few_shot_rows, protocol_rows, spread_facts
from papsmear.probes.transfer import Transferred
from papsmear.probes.transfer_tables import published_transfer, transfer_rows
from papsmear.ssl.card import EncoderCard

SCHEMA = 1
BOOTSTRAP = "bootstrap.npy"  # beside results.json


@dataclass(frozen=True)
class Results:
    """What a probe run found, by set and encoder, and what it was found on and with.

    `scores`: the published protocol. `failed`: why an encoder gave no result, by its name. `protocols`: every protocol,
    the published one among them. `few_shot`: the curves. `duplicates`: of each set. `transfer`: to the sets `targets`.
    `leaks`: the encoders that were trained on slides of a set, by its name. `resize`: how images are
    brought to the encoders' input. `folds`: the names that stand for several folds' encoders. `pretraining`: the W&B
    run that made an encoder. `features`: encoder → set or target → (N, D).
    """

    sets: dict[str, CellSet]
    cards: dict[str, EncoderCard]
    scores: dict[str, dict[str, Score]]
    failed: dict[str, str]
    runs: int
    seed: int
    protocols: dict[str, dict[str, dict[Protocol, Result]]]
    few_shot: dict[str, dict[str, list[Shot]]]
    duplicates: dict[str, dict[str, Any]] = field(default_factory=dict)
    targets: dict[str, CellSet] = field(default_factory=dict)
    transfer: list[Transferred] = field(default_factory=list)
    leaks: dict[str, list[str]] = field(default_factory=dict)
    resize: Resize = "whole"
    folds: Folds = field(default_factory=dict)
    pretraining: dict[str, dict[str, str]] = field(default_factory=dict)
    features: dict[str, dict[str, Floats]] = field(default_factory=dict)


def results_json(results: Results) -> str:
    """The results as JSON, as results.schema.json describes them; figures are shares of 1.

    `sets[set]`: `images`, `sha256` of its cells, `classes` (name, short, side, images), `damaged` (file → reason),
    `duplicates`. `leaks`: the encoders that were trained on slides of a set. `encoders[name]`: its card;
    `pretraining[name]`: its W&B run. `scores`, the published protocol: a row for each set and encoder with `k`,
    `weighted_f1`, `class_f1`, `side_f1` and `weighted_f1_by_k`, each figure as `mean`, `sd` and `runs`, and
    `confusion`, the counts over all runs with a row for each true class. `protocols`: a row for each set, encoder and
    protocol, with `interval_95` in each figure, and `as_published` or `honest` where it is that. `differences`: paired,
    a row for each two encoders and protocol. `few_shot`: the curves. `targets[set]`, as `sets`, and `transfer`: a row
    for each encoder, fitting set and target, each metric with its `value` and `interval_95`. `folds` and
    `transfer_folds`: the same over folds' encoders, each score as `mean`, `sd_folds`, `sd_runs` and `folds`.
    `published`: the study's own figures, in percent.
    """
    document = {
        "schema": SCHEMA,
        "papsmear": __version__,
        "protocol": {
            "test_share": TEST_SHARE,
            "runs": results.runs,
            "seed": results.seed,
            "k": "best on the test part",
            "resize": results.resize,
        },
        "sets": {
            name: {**_set_facts(cells), "duplicates": results.duplicates.get(name)}
            for name, cells in results.sets.items()
        },
        "targets": {name: _set_facts(cells) for name, cells in results.targets.items()},
        "encoders": {name: asdict(card) for name, card in results.cards.items()},
        "pretraining": results.pretraining,
        "failed": results.failed,
        "leaks": results.leaks,
        "scores": [
            {"set": set_name, "encoder": encoder, **_score_facts(score)}
            for set_name, scores in results.scores.items()
            for encoder, score in scores.items()
        ],
        "protocols": protocol_rows(results.protocols),
        "differences": difference_rows(results.protocols),
        "few_shot": few_shot_rows(results.few_shot),
        "transfer": transfer_rows(results.transfer),
        "folds": fold_rows(results.protocols, results.folds),
        "transfer_folds": transfer_fold_rows(results.transfer, results.folds),
        "published": {
            "source": published.SOURCE,
            "weighted_f1": {name: published.WEIGHTED_F1.get(name, {}) for name in results.sets},
            "class_f1": {name: published.CLASS_F1.get(name, {}) for name in results.sets},
            "transfer_sensitivity": published_transfer(results.targets),
        },
    }
    return json.dumps(document, indent=1)


def _set_facts(cells: CellSet) -> dict[str, Any]:
    classes = [
        {"name": c.name, "short": c.short, "side": c.side, "images": n}
        for c, n in zip(cells.classes, cells.counts(), strict=True)
    ]
    checksum = set_checksum(cells, source_pictures(cells))
    return {"images": len(cells.labels), "sha256": checksum, "classes": classes, "damaged": cells.damaged}


def resampled(protocols: Mapping[str, Mapping[str, Mapping[Protocol, Result]]]) -> NDArray[np.float32]:
    """Weighted F1 in each bootstrap resample (R, B), a row for each of `protocols` in results.json, in their order."""
    return np.array([r.resampled for of_set in protocols.values() for of in of_set.values() for r in of.values()], "f4")


def _score_facts(score: Score) -> dict[str, Any]:
    return {
        "k": score.k,
        "weighted_f1": spread_facts(score.weighted_f1),
        "class_f1": {name: spread_facts(spread) for name, spread in score.class_f1.items()},
        "side_f1": {name: spread_facts(spread) for name, spread in score.side_f1.items()},
        "weighted_f1_by_k": {str(k): spread_facts(spread) for k, spread in score.by_k.items()},
        "confusion": score.confusion.tolist(),
    }


def best_encoder(scores: Mapping[str, Score]) -> str:
    """The encoder with the highest mean weighted F1."""
    return max(scores, key=lambda encoder: scores[encoder].weighted_f1.mean)
