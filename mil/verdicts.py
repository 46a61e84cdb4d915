"""What heads said of labelled slides: the common ground of a test, of a cross-validation, and of comparisons.

S: slides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from papsmear.cohort import Slide
from papsmear.mil.calibration import Calibration, Floats

GROUPS = ("bethesda", "site", "scanner")  # columns of slides.csv that figures are told apart by


@dataclass(frozen=True)
class Verdicts:
    """Of each slide its fold, label, raw logit, calibrated log odds, and whether it was called positive, all (S,)."""

    slides: tuple[Slide, ...]
    folds: NDArray[np.int64]
    labels: NDArray[np.int64]
    logits: Floats
    log_odds: Floats
    called: NDArray[np.bool_]

    @classmethod
    def of(cls, slides: Sequence[Slide], fold: int, logits: Floats, calibration: Calibration, threshold: float) -> Self:
        """Those of one head on labelled slides of one fold."""
        return cls(
            slides=tuple(slides),
            folds=np.full(len(slides), fold),
            labels=np.array([slide.label for slide in slides], np.int64),
            logits=logits,
            log_odds=calibration.log_odds(logits),
            called=calibration.probability(logits) >= threshold,
        )

    @classmethod
    def together(cls, parts: "Sequence[Verdicts]") -> Self:
        """Those of several folds as one."""
        return cls(
            slides=tuple(slide for part in parts for slide in part.slides),
            folds=np.concatenate([part.folds for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            logits=np.concatenate([part.logits for part in parts]),
            log_odds=np.concatenate([part.log_odds for part in parts]),
            called=np.concatenate([part.called for part in parts]),
        )

    @property
    def patients(self) -> NDArray[np.int64]:
        """Whose each slide is (S,): patients are numbered as they come."""
        number: dict[str, int] = {}
        return np.array([number.setdefault(slide.patient_id, len(number)) for slide in self.slides], np.int64)

    @property
    def n_patients(self) -> int:
        """How many patients there are, counted in each fold."""
        return len(np.unique(np.stack([self.folds, self.patients]), axis=1).T)

    def by_fold(self) -> "dict[int, NDArray[np.bool_]]":
        """Which slides (S,) are of each fold."""
        return {int(fold): self.folds == fold for fold in np.unique(self.folds)}

    def groups(self) -> "dict[str, dict[str, NDArray[np.bool_]]]":
        """Of each column of `GROUPS` that tells slides apart, which slides (S,) have each of its values."""
        found = {}
        for column in GROUPS:
            values = np.array([slide.row.get(column, "") for slide in self.slides])
            if any(values):
                found[column] = {str(value): values == value for value in np.unique(values) if value}
        return found
