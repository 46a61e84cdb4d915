"""From a head's logit to a probability that can be taken at its word, and how far it can.

A head is trained with both classes counting the same, so its logit z is evidence on top of even odds. Its probability
is sigmoid(z / T + b): the temperature T (Guo et al. 2017, section 4.2) is fitted on the validation slides; b, the log
odds of a positive slide in training, is what the even odds left out (Bayes; Elkan 2001, theorem 2). So a head that
knows nothing gives every slide the training prevalence. The order of the slides, hence the AUC, stays as it is.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from papsmear.mil.delong import Interval
from papsmear.mil.metrics import Share

Floats = NDArray[np.float64]

COLDEST, HOTTEST = 0.05, 100.0


@dataclass(frozen=True)
class Calibration:
    """What makes a probability of a logit; as it stands it changes nothing."""

    temperature: float = 1.0
    prior_log_odds: float = 0.0

    def log_odds(self, logits: Floats) -> Floats:
        """Logits (S,) as calibrated log odds (S,), in the same order."""
        return logits / self.temperature + self.prior_log_odds

    def probability(self, logits: Floats) -> Floats:
        """Logits (S,) as probabilities (S,)."""
        return np.asarray(expit(self.log_odds(logits)))


@dataclass(frozen=True)
class Bin:
    """Slides of like probability: how many, their mean probability, the share that is positive, and its interval."""

    slides: int
    probability: float
    positive: float
    interval_95: Interval


def calibrate(labels: NDArray[np.int64], logits: Floats, prior_log_odds: float) -> Calibration:
    """The calibration of highest likelihood on slides with `labels` (S,) of both classes and `logits` (S,).

    The labels are smoothed as by Platt (1999, section 2.2), else slides without an error would ask for T = 0.
    """
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(log_temperature: float) -> float:
        log_odds = Calibration(float(np.exp(log_temperature)), prior_log_odds).log_odds(logits)
        return float(np.mean(np.logaddexp(0, log_odds) - targets * log_odds))  # cross-entropy, convex in 1 / T

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-6})
    return Calibration(float(np.exp(found.x)), prior_log_odds)


def brier(labels: NDArray[np.int64], probabilities: Floats) -> float:
    """The mean squared error of probabilities (S,) (Brier 1950); 0 is perfect."""
    return float(np.mean((probabilities - labels) ** 2))


def reliability(
    labels: NDArray[np.int64], probabilities: Floats, patients: NDArray[np.int64], bins: int = 10
) -> list[Bin]:
    """The slides (S,) in bins of the same width, those without a slide left out (Guo et al. 2017, section 2)."""
    bin_of = np.minimum((probabilities * bins).astype(int), bins - 1)  # (S,)
    found = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        share = Share.among(labels[inside] == 1, patients[inside])
        found.append(
            Bin(share.of, float(probabilities[inside].mean()), share.count / share.of, share.interval or (0, 1))
        )
    return found
