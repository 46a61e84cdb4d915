"""What a cell of each class looks like, as one table of numbers.

N:C is nucleus over whole-cell area. For the Herlev classes it follows the medians measured on the set's own masks
(superficial 0.009, intermediate 0.028, columnar 0.30, light 0.25, moderate 0.36, severe 0.51, carcinoma in situ
0.60; Jantzen, Norup, Dounias & Bjerregaard, "Pap-smear benchmark data for pattern classification", 2005), light and
moderate a little lower since those pictures often cut the cell. Nuclear areas follow the yardsticks of the Bethesda
System (Nayar & Wilbur, 3rd ed. 2015): 35 µm² for an intermediate nucleus, 50 µm² for a metaplastic one, low-grade
lesions at least three times the intermediate one, high-grade ones no larger but in smaller cells. The SIPaKMeD
classes follow the descriptions of Plissiti et al. (ICIP 2018). Densities and textures are by eye, beside the Herlev
pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from papsmear.tiling.phantom.canvas import Outline, polygonal, rounded, tapered


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


_superficial = Morphology(
    nucleus_um2=(22, 0.18),
    nc_ratio=(0.0095, 0.22),
    outline=polygonal,
    elongation=(1.0, 1.45),
    eosinophilic=0.85,
    density=0.5,
    dome=0.1,
    granules=45,
    fold=0.35,
    wrinkles=2.5,
    grain=0.09,
    nuclear_density=1.45,
    membrane=0.1,
    chromatin=0.04,
    nuclear_elongation=(1.0, 1.35),
    nucleolus=0,
)
_intermediate = Morphology(
    nucleus_um2=(38, 0.18),
    nc_ratio=(0.028, 0.25),
    outline=polygonal,
    elongation=(1.0, 1.5),
    eosinophilic=0.06,
    density=0.55,
    dome=0.2,
    rim=0.32,
    granules=14,
    fold=0.3,
    wrinkles=2.5,
    grain=0.12,
    nuclear_density=0.72,
    membrane=0.4,
    chromatin=0.14,
    chromatin_um=0.7,
)
_columnar = Morphology(
    nucleus_um2=(55, 0.2),
    nc_ratio=(0.27, 0.22),
    outline=tapered,
    elongation=(1.6, 2.8),
    rough=0.08,
    density=0.55,
    dome=0.5,
    rim=0.15,
    grain=0.2,
    vacuoles=4,
    eccentric=0.55,
    nuclear_density=0.7,
    chromatin=0.16,
    nuclear_elongation=(1.15, 1.5),
    nucleolus=0.35,
)
_light = Morphology(
    nucleus_um2=(112, 0.22),
    nc_ratio=(0.17, 0.28),
    outline=polygonal,
    elongation=(1.0, 1.8),
    rough=0.07,
    eosinophilic=0.15,
    density=0.62,
    dome=0.25,
    fold=0.15,
    wrinkles=0.7,
    granules=6,
    eccentric=0.25,
    nuclei=0.1,
    nuclear_density=0.95,
    chromatin=0.22,
    chromatin_um=0.9,
    irregular=0.04,
    nuclear_elongation=(1.0, 1.5),
)
_moderate = replace(
    _light,
    nucleus_um2=(118, 0.24),
    eccentric=0.4,
    nc_ratio=(0.33, 0.24),
    outline=rounded,
    rough=0.08,
    eosinophilic=0.05,
    density=0.72,
    dome=0.45,
    fold=0.0,
    wrinkles=0.3,
    granules=0,
    nuclei=0.05,
    nuclear_density=1.12,
    chromatin=0.24,
    chromatin_um=1.0,
    irregular=0.05,
)
_severe = replace(
    _moderate,
    nucleus_um2=(116, 0.26),
    eccentric=0.5,
    nc_ratio=(0.48, 0.18),
    elongation=(1.0, 1.7),
    density=0.8,
    dome=0.5,
    wrinkles=0.0,
    nuclear_density=1.3,
    chromatin=0.28,
    chromatin_um=1.15,
    irregular=0.06,
    nuclear_elongation=(1.1, 1.75),
)
_carcinoma = replace(
    _severe,
    nucleus_um2=(112, 0.28),
    eccentric=0.6,
    nc_ratio=(0.64, 0.11),
    elongation=(1.0, 1.5),
    nuclear_density=1.45,
    chromatin=0.33,
    chromatin_um=1.35,
    irregular=0.065,
    nuclear_elongation=(1.0, 1.6),
    nucleolus=0.25,
)
_parabasal = Morphology(
    nucleus_um2=(56, 0.15),
    nc_ratio=(0.19, 0.2),
    outline=rounded,
    elongation=(1.0, 1.2),
    rough=0.025,
    eosinophilic=0.05,
    density=0.85,
    dome=0.5,
    rim=0.25,
    grain=0.1,
    eccentric=0.12,
    nuclear_density=0.85,
    chromatin=0.15,
)
_metaplastic = replace(
    _parabasal,
    nucleus_um2=(52, 0.18),
    nc_ratio=(0.15, 0.22),
    outline=polygonal,
    elongation=(1.0, 1.6),
    rough=0.13,
    density=0.9,
    dome=0.25,
    rim=0.5,
    vacuoles=1.5,
    eccentric=0.25,
    nucleolus=0.25,
)
_koilocyte = Morphology(
    nucleus_um2=(92, 0.2),
    nc_ratio=(0.075, 0.2),
    outline=polygonal,
    elongation=(1.0, 1.4),
    rough=0.06,
    eosinophilic=0.3,
    density=0.75,
    dome=0.05,
    rim=0.35,
    wrinkles=0.6,
    halo=4.2,
    eccentric=0.15,
    nuclei=0.35,
    nuclear_density=1.15,
    membrane=0.2,
    chromatin=0.18,
    chromatin_um=1.1,
    irregular=0.06,
    nuclear_elongation=(1.0, 1.45),
    nucleolus=0,
)
_dyskeratotic = Morphology(
    nucleus_um2=(58, 0.25),
    nc_ratio=(0.20, 0.25),
    outline=polygonal,
    elongation=(1.0, 2.0),
    rough=0.08,
    eosinophilic=1.0,
    orange=0.85,
    density=1.25,
    dome=0.35,
    rim=0.3,
    grain=0.1,
    wrinkles=0.5,
    eccentric=0.2,
    nuclei=0.15,
    nuclear_density=1.5,
    membrane=0.1,
    chromatin=0.1,
    irregular=0.08,
    nuclear_elongation=(1.0, 1.7),
    nucleolus=0,
)

MORPHOLOGY: dict[str, tuple[Morphology, ...]] = {
    "normal_superficiel": (_superficial,),
    "normal_intermediate": (_intermediate,),
    "normal_columnar": (_columnar,),
    "light_dysplastic": (_light,),
    "moderate_dysplastic": (_moderate,),
    "severe_dysplastic": (_severe,),
    "carcinoma_in_situ": (_carcinoma,),
    "im_Superficial-Intermediate": (_superficial, _intermediate),
    "im_Parabasal": (_parabasal,),
    "im_Metaplastic": (_metaplastic,),
    "im_Koilocytotic": (_koilocyte,),
    "im_Dyskeratotic": (_dyskeratotic,),
}
