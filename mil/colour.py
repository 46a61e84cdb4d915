"""The colours of slides: the light and the stain of one in numbers, and how far they lie from those of a training.

Encoders learn to see past colour, so their features hardly tell of swapped channels or half the light. The light of a
slide are the levels of red, green and blue that a tenth of its pixels exceed, the glass. Its stain is how red, green
and blue vary together: how widely red and blue are spread against green, and how each two correlate. Many cells or few
change none of these. Logarithms and Fisher's z make them more nearly normal.

The distance is Mahalanobis', and the limit that of Hotelling's T² for one more slide like those of the training
(Johnson & Wichern, Applied Multivariate Statistical Analysis, result 5.6): normal values exceed it at a known rate,
whatever the number of slides. So of few slides the limit is wide. Light and stain are judged apart, since fewer numbers
need fewer slides.

n: slides. p: numbers of a slide.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtri

Numbers = tuple[float, ...]

FALSE_ALARMS = 0.001  # of slides like those of the training
NOTHING = 0.01  # added to the spread between slides: a difference of 1 % tells nothing, however alike the slides are
_NOISE = 1.0  # of a level's variance, so that a picture of one colour has a stain too
_STEP_PX = 4  # a sixteenth of the pixels is enough


class ColourCounts:
    """What the tiles of a slide add up to, their order no matter: levels (3, 256) and sums of products (3, 3)."""

    def __init__(self) -> None:
        self._levels = np.zeros((3, 256), np.int64)
        self._products = np.zeros((3, 3))  # whole numbers below 2^53, so exact

    def counting(self, images: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """The same images (H, W, 3), counted as they pass."""
        for rgb in images:
            seen = rgb[::_STEP_PX, ::_STEP_PX].reshape(-1, 3)
            for counts, levels in zip(self._levels, seen.T, strict=True):
                counts += np.bincount(levels, minlength=256)
            values = seen.astype(np.float64)
            self._products += values.T @ values
            yield rgb

    def light(self) -> Numbers:
        """Three numbers of what was counted, which must be one pixel at least."""
        upto = self._levels.cumsum(axis=1)  # (3, 256)
        glass = (10 * upto >= 9 * upto[:, -1:]).argmax(axis=1)
        return tuple(np.log(1 + glass).tolist())

    def stain(self) -> Numbers:
        """Five numbers of what was counted, which must be one pixel at least."""
        pixels = self._levels[0].sum()
        mean = self._levels @ np.arange(256) / pixels  # (3,)
        covariance = self._products / pixels - np.outer(mean, mean) + _NOISE * np.eye(3)
        spread = np.sqrt(np.diag(covariance))
        correlation = np.clip(covariance / np.outer(spread, spread), -0.999, 0.999)
        red, green, blue = np.log(spread).tolist()
        return (red - green, blue - green, *np.arctanh(correlation[[0, 2, 0], [1, 1, 2]]).tolist())


@dataclass(frozen=True)
class Colours:
    """The light or the stain of a training: of how many `slides`, their mean (p,) and covariance (p, p)."""

    slides: int
    mean: Numbers
    covariance: tuple[Numbers, ...]

    @classmethod
    def of(cls, colours: Sequence[Numbers]) -> Self | None:
        """Those of some slides; None of so few that there is no limit."""
        if not colours or len(colours) < len(colours[0]) + 2:
            return None
        x = np.array(colours)  # (n, p)
        covariance = np.cov(x, rowvar=False) + NOTHING**2 * np.eye(x.shape[1])
        return cls(len(x), tuple(x.mean(axis=0).tolist()), tuple(map(tuple, covariance.tolist())))

    @classmethod
    def from_dict(cls, fields: dict[str, Any] | None) -> Self | None:
        """What JSON made of it."""
        if fields is None:
            return None
        return cls(fields["slides"], tuple(fields["mean"]), tuple(map(tuple, fields["covariance"])))

    def distance(self, colour: Numbers) -> float:
        """How far a slide lies from the mean, in the spread between slides."""
        off = np.subtract(colour, self.mean)
        return math.sqrt(off @ np.linalg.solve(self.covariance, off))

    @property
    def limit(self) -> float:
        """The distance that a share of FALSE_ALARMS of slides like these exceed."""
        n, p = self.slides, len(self.mean)
        return math.sqrt(p * (n + 1) * (n - 1) / (n * (n - p)) * float(fdtri(p, n - p, 1 - FALSE_ALARMS)))


def written(colour: Numbers) -> str:
    """As a bag's attribute tells it."""
    return " ".join(f"{number:.6f}" for number in colour)


def read(attributes: Iterable[str | None]) -> list[Numbers]:
    """What bags tell, those that do."""
    return [tuple(map(float, text.split())) for text in attributes if text is not None]
