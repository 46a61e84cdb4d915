"""The operating point: from which probability on a slide is called positive, chosen on the validation slides.

It lies midway between two neighbouring probabilities, so that it does not hang on one slide's last digit.
"""

from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from papsmear.errors import UsageError


class Wanted(TypedDict):
    """At least this share of the positive validation slides is called positive."""

    sensitivity: float


OperatingPoint = Literal["youden"] | Wanted


def check_operating_point(point: OperatingPoint) -> None:
    """A UsageError where a wanted sensitivity is none."""
    if point != "youden" and not 0 < point["sensitivity"] <= 1:
        raise UsageError(
            f"model.operating_point: sensitivity {point['sensitivity']:g} is not above 0 and at most 1; give a share, "
            "such as 0.95"
        )


def choose_threshold(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], point: OperatingPoint = "youden"
) -> float:
    """The threshold for slides with `labels` (S,), of both classes, and `probabilities` (S,).

    Youden (1950): the highest sensitivity + specificity; of equals the most sensitive, as for screening. A wanted
    sensitivity: the most specific threshold that reaches it.
    """
    levels = np.unique(probabilities)  # rising
    candidates = np.concatenate([levels[:1], (levels[:-1] + levels[1:]) / 2])  # rising, so the most sensitive first
    called = probabilities >= candidates[:, None]  # (candidates, S)
    true, false = (called[:, labels == label].sum(axis=1) for label in (1, 0))
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if point == "youden":
        youden = true * negatives - false * positives  # in whole numbers, so that equals are equal
        return float(candidates[np.argmax(youden)])
    enough = np.flatnonzero(true >= point["sensitivity"] * positives - 1e-9)
    return float(candidates[enough[-1]])
