"""Paired comparisons of encoders: the difference of weighted F1, with the bootstrap's interval of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from papsmear.probes.bootstrap import Interval, interval
from papsmear.probes.results import Protocol, Result


@dataclass(frozen=True)
class Difference:
    """Weighted F1 of encoder `first` minus that of `second` under one protocol.

    `interval`: 95 %, of the differences in the same bootstrap resamples; not widened for the number of comparisons.
    """

    protocol: Protocol
    first: str
    second: str
    mean: float
    interval: Interval

    @property
    def clear(self) -> bool:
        """The interval leaves out 0."""
        return not self.interval[0] <= 0 <= self.interval[1]


def differences(results: Mapping[str, Mapping[Protocol, Result]]) -> list[Difference]:
    """Every two encoders of a set under every protocol, from encoder → protocol → result."""
    names, found = list(results), []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            for protocol, a in results[first].items():
                b = results[second][protocol]
                mean = a.weighted_f1.mean - b.weighted_f1.mean
                found.append(Difference(protocol, first, second, mean, interval(a.resampled - b.resampled)))
    return found
