"""A slide's diagnosis: what a model says of a slide, or why it says nothing."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from papsmear import __version__
from papsmear.mil.qupath import TopTile
from papsmear.mil.scope import Measured
from papsmear.page import RESEARCH_USE_ONLY
from papsmear.tiling.cut import TileSettings

SUSPICIOUS, BELOW, NOT_ASSESSABLE = "suspicious – review", "below operating point", "not assessable"
TOP_TILES = 10


@dataclass(frozen=True)
class Diagnosis:
    """What a model says of a slide, or why it says nothing.

    Attributes:
        slide_id: Letters, digits, `_`, `-`.
        operating_point: The probability from which on a slide is suspicious.
        size_level0: The slide's width and height in pixels of level 0.
        mpp: µm per pixel of level 0.
        tiles: What the tiles are that the encoder sees.
        tile_size_level0: Their side in level-0 pixels.
        model: Names and checksums of head and encoder.
        probability: Of the slide holding abnormal cells, 0..1; None where it cannot be judged.
        xy_level0: (N, 2) int32, the tiles' top-left corners; empty where the slide cannot be judged, as `scores`.
        scores: (N,) float32, the head's score of each, such as its attention.
        reasons: Why the slide cannot be judged; empty where it can.
        limits: What of a slide can be judged.
        measured: What this one is, as far as it was looked at.
        source: What tells the slide's files from others: size and checksums.
        seen: The parts of the model ("encoder", "head") that were trained on a slide of this id.
    """

    slide_id: str
    operating_point: float
    size_level0: tuple[int, int]
    mpp: float
    tiles: TileSettings
    tile_size_level0: float
    model: dict[str, dict[str, str]]
    probability: float | None = None
    xy_level0: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 2), np.int32))
    scores: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    reasons: tuple[str, ...] = ()
    limits: Measured = field(default_factory=Measured)
    measured: Measured = field(default_factory=Measured)
    source: dict[str, Any] = field(default_factory=dict)
    seen: tuple[str, ...] = ()

    @property
    def decision(self) -> str:
        """The operating point applied, in words."""
        if self.probability is None:
            return NOT_ASSESSABLE
        return SUSPICIOUS if self.probability >= self.operating_point else BELOW

    def top_tiles(self, count: int = TOP_TILES) -> list[TopTile]:
        """The tiles of the highest scores; of equal scores the first in grid order comes first."""
        below = np.searchsorted(np.sort(self.scores), self.scores)  # (N,), how many have a lower score
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [
            TopTile(
                rank=rank,
                xy_level0=(int(self.xy_level0[n, 0]), int(self.xy_level0[n, 1])),
                size_level0=self.tile_size_level0,
                score=float(self.scores[n]),
                percentile=100 * int(below[n]) / len(self.scores),
            )
            for rank, n in enumerate(order, start=1)
        ]

    def record(self) -> dict[str, Any]:
        """The diagnosis as it stands in the JSON file."""
        return {
            "slide_id": self.slide_id,
            "research_use_only": RESEARCH_USE_ONLY,
            "assessable": self.probability is not None,
            "reasons": list(self.reasons),
            "probability": self.probability,
            "decision": self.decision,
            "operating_point": self.operating_point,
            "model": self.model,
            "model_saw_this_slide_in_training": list(self.seen),
            "slide": {"size_level0": list(self.size_level0), "mpp": self.mpp, **self.source},
            "measured": asdict(self.measured),
            "limits": asdict(self.limits),
            "tiles": {
                "count": self.measured.tiles,
                "size_px": self.tiles.size_px,
                "mpp": self.tiles.mpp,
                "size_level0": self.tile_size_level0,
            },
            "tile_settings": asdict(self.tiles),
            "top_tiles": [asdict(tile) for tile in self.top_tiles()],
            "papsmear_version": __version__,
        }
