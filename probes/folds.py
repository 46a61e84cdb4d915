"""Finished folds on the disk, so that a run that was killed does not train them again.

`OUT/folds/<splits>-<task>-<fold>.json` holds a fold's scores with all that they hang on. A fold that was being trained
when the run ended starts anew.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from papsmear.errors import UsageError
from papsmear.files import write_text
from papsmear.probes.datasets import CellSet
from papsmear.probes.nuclei import Nucleus
from papsmear.probes.screening import FoldScores


def fold_scores(path: Path, made_with: Mapping[str, Any], score: Callable[[], FoldScores]) -> tuple[FoldScores, bool]:
    """The scores in `path`, or else those that `score` makes, which are then kept there; and whether they were new.

    UsageError where the file was made with anything else than `made_with`.
    """
    if path.is_file():
        return _read(path, made_with), False
    scores = score()
    content = {"made_with": dict(made_with), **asdict(scores)}
    write_text(path, json.dumps(content, default=lambda array: array.tolist()))
    return scores, True


def check_folds(folder: Path, made_with: Mapping[str, Any]) -> None:
    """UsageError where a finished fold in `folder` was made with anything else than `made_with`."""
    for path in sorted(folder.glob("*.json")):
        _read(path, made_with)


def _read(path: Path, made_with: Mapping[str, Any]) -> FoldScores:
    content = json.loads(path.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(made_with))
    found = content["made_with"]
    other = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
    if other:
        raise UsageError(
            f"{path}: this fold was made with another {', '.join(sorted(other))}; "
            "give another --out, or remove the folder to train anew"
        )
    return FoldScores(
        np.array(content["test"], dtype=np.int64),
        np.array(content["scores"]),
        {int(px): np.array(scores) for px, scores in content["displaced"].items()},
        tuple(content["loss"]),
    )


def checksum(cells: CellSet, nuclei: Sequence[Nucleus]) -> str:
    """SHA-256 over pixels, names, labels and nuclei of a set, hexadecimal."""
    digest = hashlib.sha256()
    for path, label, image, nucleus in zip(cells.paths, cells.labels, cells.images, nuclei, strict=True):
        digest.update(f"{path}/{label}/{image.shape}/{nucleus}".encode() + image.tobytes())
    return digest.hexdigest()
