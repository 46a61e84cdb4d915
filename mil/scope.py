"""What slides a head can judge: those that are like the ones it was trained on. Of others it would give a number too.

Five things are measured on a slide and held against the training and validation slides: how many tiles it gave, how
sharp it is, and how far its features, its light and its stain lie from theirs.

N: tiles of a slide. D: width of their features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from papsmear.mil.bags import read_attribute
from papsmear.mil.colour import Colours, read

if TYPE_CHECKING:  # a diagnosis reads a head's scope, and should not wait for lightning
    from papsmear.mil.data import BagData

TILES, FOCUS, DISTANCE = 0.1, 0.5, 2.0  # times what the training slides have: how far a slide may be from that


@dataclass(frozen=True)
class Measured:
    """What is measured of a slide; None where that could not be.

    Attributes:
        tiles: How many tiles it gave.
        focus: `sharpness` of its tiles.
        distance: `distance` of its features.
        light: `Colours.distance` of its light.
        stain: That of its stain.
    """

    tiles: int = 0
    focus: float | None = None
    distance: float | None = None
    light: float | None = None
    stain: float | None = None


@dataclass(frozen=True)
class Scope:
    """The slides of a training: their median count of tiles, the least sharp one, the farthest (99 of 100), and what
    light and stain they have; None where bags do not tell, or slides are too few.
    """

    tiles: int
    focus: float | None
    distance: float
    light: Colours | None = None
    stain: Colours | None = None

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Scope":
        """What JSON made of it."""
        return cls(**fields | {name: Colours.from_dict(fields.get(name)) for name in ("light", "stain")})

    @classmethod
    def of(cls, bags: "BagData", mean: NDArray[np.float32], std: NDArray[np.float32]) -> "Scope":
        """That of the training and validation slides, by the training features' `mean` and `std` (D,).

        The validation slides are no part of mean and std: their distance is that of slides not seen.
        """
        ids = (*bags.ids("train"), *bags.ids("validation"))
        features = map(bags.shelf.features, ids)
        tiles, distances = zip(*((len(x), distance(x, mean, std)) for x in features), strict=True)
        focus = [read_attribute(bags.shelf.file(slide_id), "focus") for slide_id in ids]
        light, stain = (
            Colours.of(read(read_attribute(bags.shelf.file(slide_id), name) for slide_id in ids))
            for name in ("light", "stain")
        )
        return cls(
            tiles=int(np.median(tiles)),
            focus=min(map(float, known)) if (known := [f for f in focus if f is not None]) else None,
            distance=float(np.percentile(distances, 99)),
            light=light,
            stain=stain,
        )

    def limits(self) -> Measured:
        """The fewest tiles, the least sharpness and the largest distances of a slide that can be judged."""
        focus = None if self.focus is None else FOCUS * self.focus
        light, stain = (None if colours is None else colours.limit for colours in (self.light, self.stain))
        return Measured(max(1, round(TILES * self.tiles)), focus, DISTANCE * self.distance, light, stain)


def doubts(found: Measured, limits: Measured) -> tuple[str, ...]:
    """Why a slide cannot be judged, in words; empty where it can."""
    reasons = []
    if found.tiles < limits.tiles:
        reasons.append(f"too few tiles: {found.tiles}, at least {limits.tiles} are needed")
    if found.focus is not None and limits.focus is not None and found.focus < limits.focus:
        reasons.append(
            f"out of focus: its sharpest tiles score {found.focus:.3g}, at least {limits.focus:.3g} is needed"
        )
    if found.distance is not None and limits.distance is not None and found.distance > limits.distance:
        reasons.append(
            f"unlike the slides of the training: its features lie {found.distance:.3g} from theirs, at most"
            f" {limits.distance:.3g} is allowed (another stain, scanner or kind of specimen?)"
        )
    for name, far, most, guess in (
        ("light", found.light, limits.light, "brightness or white balance"),
        ("stain", found.stain, limits.stain, "stain, or order of the channels"),
    ):
        if far is not None and most is not None and far > most:
            reasons.append(
                f"in another {name} than the slides of the training: {far:.3g} from theirs, at most {most:.3g} is"
                f" allowed (another {guess}?)"
            )
    return tuple(reasons)


def sharpness(focus: Sequence[float]) -> float:
    """The focus score that a tenth of the tiles reach, of the scores of all.

    Where few cells lie the score is low however sharp the picture; a slide in focus has sharp tiles somewhere.
    """
    return float(np.percentile(focus, 90))


def distance(features: NDArray[Any], mean: NDArray[np.float32], std: NDArray[np.float32]) -> float:
    """How far a slide's features (N, D) lie from the training's: the mean absolute z-score of their mean over tiles.

    Not the root mean square: features that hardly ever change in training would decide it alone, and flag good slides.
    """
    z = (features.mean(axis=0, dtype=np.float64) - mean) / std  # (D,)
    return float(np.abs(z).mean())
