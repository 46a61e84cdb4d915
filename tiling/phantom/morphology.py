"""What makes one kind of cell look different from another, as numbers that drawing understands."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from papsmear.tiling.phantom.canvas import Outline


@dataclass(frozen=True)
class Morphology:
    """One class; pairs are (median, spread) of log-normal values or (low, high) of even ones.

    Attributes:
        nucleus_um2: Nuclear area, (median, log spread).
        nc_ratio: Nucleus over cell, (median, log spread).
        outline: Family of cell outlines.
        elongation: Of the cell, (low, high).
        rough: Of the cell's outline.
        eosinophilic: Share of cells that are pink.
        orange: Orange (keratin) in the cytoplasm, 0..1.
        density: Of the cytoplasm.
        dome: How much thinner it is at the edge: 0 a flat sheet, 1 a ball.
        rim: Density of the cell's edge line.
        grain: Strength of the cytoplasm's texture.
        granules: Dark specks per 1,000 µm².
        fold: Chance of an edge folded over.
        wrinkles: Mean number of crease lines.
        vacuoles: Mean number of bubbles.
        halo: Area of a koilocyte's cavity over that of its nucleus; 0 for none.
        eccentric: Of the nucleus, 0 centre .. 1 at the edge.
        nuclei: Chance of a second nucleus.
        nuclear_density: Haematoxylin of the nucleus.
        membrane: Density of the nuclear membrane.
        chromatin: Contrast of the chromatin.
        chromatin_um: Its grain.
        irregular: Roughness of the nuclear outline.
        nuclear_elongation: (low, high).
        nucleolus: Chance of one.
    """

    nucleus_um2: tuple[float, float]
    nc_ratio: tuple[float, float]
    outline: Callable[[np.random.Generator, float, float, float], Outline]
    elongation: tuple[float, float] = (1.0, 1.35)
    rough: float = 0.05
    eosinophilic: float = 0.1
    orange: float = 0.0
    density: float = 0.6
    dome: float = 0.3
    rim: float = 0.25
    grain: float = 0.12
    granules: float = 0.0
    fold: float = 0.0
    wrinkles: float = 0.0
    vacuoles: float = 0.0
    halo: float = 0.0
    eccentric: float = 0.2
    nuclei: float = 0.0
    nuclear_density: float = 0.8
    membrane: float = 0.35
    chromatin: float = 0.15
    chromatin_um: float = 0.8
    irregular: float = 0.02
    nuclear_elongation: tuple[float, float] = (1.0, 1.3)
    nucleolus: float = 0.1
