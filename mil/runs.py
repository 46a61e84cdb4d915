"""One run of a cross-validation: trained and tested as `lightning fit` and `lightning test` do, and read back.

A run that is finished is not run again, whoever ran it: this process, one before it, or a job of slurm/mil.sbatch.
"""

import csv
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from papsmear.cohort import Slide
from papsmear.errors import InputError, UsageError
from papsmear.mil.calibration import Calibration
from papsmear.mil.evaluation import Evaluation, evaluate
from papsmear.mil.truth import TopTiles
from papsmear.mil.verdicts import Verdicts
from papsmear.training import PapsmearCLI, prepare, train


@dataclass(frozen=True)
class Run:
    """The training and test of one head on the bags of one encoder, with one fold held out.

    `settings` is the whole configuration of the run, as configs/mil.yaml. `encoder` is empty where there is one only.
    """

    folder: Path
    encoder: str
    head: str
    fold: int
    settings: dict[str, Any]

    def finished(self) -> bool:
        """Whether it was trained and tested as it is asked for; a UsageError where its folder holds another run."""
        made = [self.folder / name for name in ("config.yaml", "checkpoints/last.ckpt", "test.json")]
        if not all(file.is_file() for file in made):
            return False
        before = yaml.safe_load(made[0].read_text(encoding="utf-8"))["trainer"]["max_epochs"]
        with _config(self.settings) as file:
            wanted = SettingsOnly(["fit", "-c", str(file)]).max_epochs
        *earlier, test = (file.stat().st_mtime_ns for file in made)
        return bool(before == wanted and test >= max(earlier))

    def run(self) -> None:
        """Trains, or goes on training, and tests."""
        with _config(self.settings) as file:
            train(["fit", "-c", str(file)])
            train(["test", "-c", str(file), "--trainer.logger=false"])  # its figures are in the table's W&B run

    def read(self, slides: Sequence[Slide]) -> "FoldResult":
        """What the test left; a UsageError where the slides of its fold have changed since."""
        file = self.folder / "test.json"
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            with (self.folder / "test.csv").open(newline="", encoding="utf-8") as stream:
                row_of = {row["slide_id"]: row for row in csv.DictReader(stream)}
            calibration = Calibration(facts["temperature"], facts["prior_log_odds"])
            labels = {slide_id: int(row["label"]) for slide_id, row in row_of.items()}
            logit_of = {slide_id: float(row["logit"]) for slide_id, row in row_of.items()}
            tops = [TopTiles(**{k: v for k, v in top.items() if k != "share"}) for top in facts["top_tiles"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file}: not what lightning test writes ({error!r}); delete it and start again"
            ) from error
        held_out = [slide for slide in slides if slide.fold == self.fold and slide.label is not None]
        if labels != {slide.slide_id: slide.label for slide in held_out}:
            raise UsageError(f"{file}: fold {self.fold} has other slides or labels now; delete {self.folder}")
        logits = np.array([logit_of[slide.slide_id] for slide in held_out])
        verdicts = Verdicts.of(held_out, self.fold, logits, calibration, facts["threshold"])
        return FoldResult(facts, verdicts, tops)


@dataclass(frozen=True)
class FoldResult:
    """A run's test.json, what the head said of each slide, and its top tiles."""

    facts: dict[str, Any]
    verdicts: Verdicts
    top_tiles: list[TopTiles]


@dataclass(frozen=True)
class System:
    """A head on an encoder's bags, with the tests of its folds."""

    encoder: str
    head: str
    tests: Mapping[int, FoldResult]

    @property
    def name(self) -> str:
        """The two in a word."""
        return f"{self.encoder} {self.head}".strip()

    @property
    def leak(self) -> bool:
        """Whether a fold's encoder or head had seen its test slides."""
        return any(test.facts["leak"] for test in self.tests.values())

    @cached_property
    def verdicts(self) -> Verdicts:
        """Those of all folds."""
        return Verdicts.together([test.verdicts for test in self.tests.values()])

    @cached_property
    def evaluation(self) -> Evaluation:
        """The figures of all folds together."""
        tops = [test.top_tiles for test in self.tests.values() if test.top_tiles]
        return evaluate(self.verdicts, [TopTiles.together(parts) for parts in zip(*tops, strict=True)])

    def without(self, fold: int) -> "System | None":
        """The same without one fold; None where that is all."""
        others = {number: test for number, test in self.tests.items() if number != fold}
        return System(self.encoder, self.head, others) if others else None

    def aucs(self) -> dict[int, float]:
        """The AUC of each fold."""
        return {fold: float(test.facts["auc"]) for fold, test in self.tests.items()}


class SettingsOnly(PapsmearCLI):
    """Reads a run's configuration and refuses it where the run's folder holds other settings; builds nothing."""

    def __init__(self, words: list[str]) -> None:
        prepare()
        super().__init__(args=words, parser_kwargs={"parser_mode": "omegaconf", "prog": "lightning"})

    def instantiate_classes(self) -> None:
        """Only the check."""
        trainer = self.config["fit"]["trainer"]
        self.run_folder, self.max_epochs = Path(trainer["default_root_dir"]), trainer["max_epochs"]
        self._refuse_other_settings()

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@contextmanager
def _config(settings: dict[str, Any]) -> Iterator[Path]:
    """A configuration as a file, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="papsmear-") as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        yield file
