"""A thing on the glass, as a filter of light.

Everything on a phantom slide, drawn or cut out of a real picture, is a sprite: what share of the light it lets
through in each channel. Sprites that overlap multiply, as real cells do in transmitted light (Beer-Lambert), so the
order of placing does not matter and a folded or covered cell looks like one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Classes by the names of the public sets. A cell kind of a phantom is one of these.
HERLEV_CLASSES = (
    "normal_superficiel",
    "normal_intermediate",
    "normal_columnar",
    "light_dysplastic",
    "moderate_dysplastic",
    "severe_dysplastic",
    "carcinoma_in_situ",
)
SIPAKMED_CLASSES = (
    "im_Superficial-Intermediate",
    "im_Parabasal",
    "im_Metaplastic",
    "im_Koilocytotic",
    "im_Dyskeratotic",
)
ABNORMAL_CLASSES = (
    "light_dysplastic",
    "moderate_dysplastic",
    "severe_dysplastic",
    "carcinoma_in_situ",
    "im_Koilocytotic",
    "im_Dyskeratotic",
)


@dataclass(frozen=True)
class Sprite:
    """One thing in focus, before it is placed; its centre is the centre of the arrays.

    Attributes:
        transmittance: (H, W, 3) float32 in 0..1, RGB; 1 (clear) along the whole border.
        kind: Its class, or `neutrophil`, `debris`, ...
        cytoplasm: (H, W) bool, the whole cell with its nucleus; empty for things that are no cells.
        nucleus: (H, W) bool.
    """

    transmittance: NDArray[np.float32]
    kind: str
    cytoplasm: NDArray[np.bool_]
    nucleus: NDArray[np.bool_]

    @property
    def abnormal(self) -> bool:
        """True for the kinds that make a slide positive."""
        return self.kind in ABNORMAL_CLASSES
