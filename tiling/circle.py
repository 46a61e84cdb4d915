"""The circle that best parts a picture of "here lies something" into a full inside and an empty outside.

Thresholds and contours give the cells of a deposit, not its disc. The circle of the greatest likelihood does, and it
holds for sparse and crowded slides, with dust outside, where the deposit is cut off by the scan, and where parts of the
picture say nothing: what lies under a pen mark does not count, for example.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

COARSE_PX, FINE_PX = 96, 256  # sides of the two pictures that are searched
RIM = 0.06  # of the radius: how far from the rim the picture is looked at
CORE = 0.8  # of the radius
SECTORS = 72

Plane = NDArray[np.float64]


@dataclass(frozen=True)
class Circle:
    """A circle in pixels, counted from the corner of the first.

    Attributes:
        x, y, radius: Where it lies; it may reach beyond the picture.
        inside, outside: Coverage on either side of it, 0 to 1.
        core: Coverage within `CORE` of its radius, which is low in rings, 0 to 1.
        seen: The share of its rim where the picture tells something: not under a mark, not beyond the edge, 0 to 1.
        parted: Where it does, how far it is as it should be: covered just inside, empty just outside, 0 to 1.
    """

    x: float
    y: float
    radius: float
    inside: float
    outside: float
    core: float
    seen: float
    parted: float

    @property
    def confidence(self) -> float:
        """The share of the whole rim that the picture shows as it should be, 0 to 1."""
        return self.seen * self.parted


def fit_circle(covered: NDArray[np.bool_], weight: NDArray[np.float32], grain_px: float = 0) -> Circle | None:
    """The circle that best parts `covered` (H, W). None where nothing is covered, or all of it evenly.

    Maximum likelihood of two coverages, one inside and one outside the circle; the centre is searched by steps that
    halve, and for each centre all radii are judged at once.

    Args:
        covered: Where something lies.
        weight: (H, W), how much each pixel tells: 1 what was seen, 0 what tells nothing.
        grain_px: Size of what covers: bands along the rim that are narrower tell nothing.
    """
    coarse, shrink = _Coverage.of(covered, weight, COARSE_PX)
    if not coarse.covered.any():
        return None
    x, y = max((coarse.search(x, y, step=8, until=0.5) for x, y in coarse.starts()), key=_gain)[1:3]
    fine, shrink_fine = _Coverage.of(covered, weight, FINE_PX)
    ratio = shrink / shrink_fine
    gain, x, y, radius, inside, outside = fine.search((x + 0.5) * ratio - 0.5, (y + 0.5) * ratio - 0.5, 1, until=0.2)
    if gain <= 0:
        return None
    seen, parted = fine.rim(x, y, radius, max(RIM * radius, grain_px / shrink_fine), inside)
    core = fine.within(x, y, CORE * radius)
    return Circle(
        (x + 0.5) * shrink_fine, (y + 0.5) * shrink_fine, radius * shrink_fine, inside, outside, core, seen, parted
    )


def _gain(found: tuple[float, ...]) -> float:
    return found[0]


@dataclass(frozen=True)
class _Coverage:
    """A shrunk picture: how much each pixel tells, and how much of that is covered, (h, w) each."""

    weight: Plane
    covered: Plane

    @classmethod
    def of(cls, covered: NDArray[np.bool_], weight: NDArray[np.float32], side_px: int) -> tuple["_Coverage", float]:
        """At most `side_px` a side, and how many pixels of `covered` (H, W) one of its spans."""
        shrink = max(1.0, max(covered.shape) / side_px)
        size = [max(1, round(side / shrink)) for side in covered.shape[::-1]]
        both = (cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in (weight, weight * covered))
        return cls(*(plane.astype(np.float64) for plane in both)), shrink

    def starts(self) -> list[tuple[float, float]]:
        """Centres to search from: of all that is covered, and where most is."""
        row, column = np.mgrid[: self.covered.shape[0], : self.covered.shape[1]]
        total = self.covered.sum()
        middle = (float((column * self.covered).sum() / total), float((row * self.covered).sum() / total))
        most = cv2.minMaxLoc(cv2.GaussianBlur(self.covered, (0, 0), max(self.covered.shape) / 10))[3]
        return [middle, (float(most[0]), float(most[1]))]

    def search(self, x: float, y: float, step: float, until: float) -> tuple[float, ...]:
        """The best of `best_radius` around (x, y)."""
        best = self.best_radius(x, y)
        while step > until:
            around = ((step, 0), (-step, 0), (0, step), (0, -step))
            better = max((self.best_radius(best[1] + dx, best[2] + dy) for dx, dy in around), key=_gain)
            if better[0] > best[0]:
                best = better
            else:
                step /= 2
        return best

    def best_radius(self, x: float, y: float) -> tuple[float, ...]:
        """(log-likelihood gain over one coverage for all, x, y, radius, coverage inside, coverage outside)."""
        ring = (2 * self._away(x, y) + 0.5).astype(np.int32).ravel()  # rings half a pixel wide
        n, k = (np.cumsum(_sums(ring, plane.ravel())) for plane in (self.weight, self.covered))
        gain = _likelihood(k, n) + _likelihood(k[-1] - k, n[-1] - n) - _likelihood(k[-1:], n[-1:])
        inside, outside = _share(k, n), _share(k[-1] - k, n[-1] - n)
        gain[inside <= outside] = -np.inf
        at = int(np.argmax(gain))
        return (float(gain[at]), x, y, at / 2 + 0.25, float(inside[at]), float(outside[at]))

    def within(self, x: float, y: float, radius: float) -> float:
        """Coverage within a circle."""
        here = self._away(x, y) <= radius
        return float(self.covered[here].sum() / max(self.weight[here].sum(), 1e-9))

    def rim(self, x: float, y: float, radius: float, width: float, inside: float) -> tuple[float, float]:
        """`Circle.seen` and `Circle.parted`, by sectors of bands of `width`; `inside` counts as fully covered."""
        row, column = np.ogrid[: self.weight.shape[0], : self.weight.shape[1]]
        away = self._away(x, y)
        turn = (np.arctan2(row - y, column - x) / (2 * np.pi) % 1 * SECTORS).astype(np.int32) % SECTORS
        shares = []
        for low, high in ((max(0.0, radius - width), radius), (radius, radius + width)):
            band = (away >= low) & (away < high)
            n, k = (_sums(turn[band], plane[band], SECTORS) for plane in (self.weight, self.covered))
            whole = np.pi * (high**2 - low**2) / SECTORS
            shares.append(np.where(n > 0.2 * whole, _share(k, n), np.nan))
        parted = np.clip((shares[0] - shares[1]) / inside, -1, 1)
        seen = ~np.isnan(parted)
        return float(seen.mean()), max(0.0, float(parted[seen].mean())) if seen.any() else 0.0

    def _away(self, x: float, y: float) -> NDArray[np.float32]:
        row, column = np.ogrid[: self.weight.shape[0], : self.weight.shape[1]]
        squared = (column - np.float32(x)).astype(np.float32) ** 2 + (row - np.float32(y)).astype(np.float32) ** 2
        return np.asarray(np.sqrt(squared), np.float32)


def _sums(place: NDArray[np.int32], values: Plane, places: int = 0) -> Plane:
    return np.asarray(np.bincount(place, values, places), np.float64)


def _share(k: Plane, n: Plane) -> Plane:
    return k / np.maximum(n, 1e-9)


def _likelihood(k: Plane, n: Plane) -> Plane:
    """Log-likelihood of `k` covered of `n` pixels at their own coverage k / n."""
    share = np.clip(_share(k, n), 1e-9, 1 - 1e-9)
    gain: Plane = k * np.log(share) + (n - k) * np.log(1 - share)
    return gain
