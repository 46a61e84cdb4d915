"""The look of one slide: glass colour and the light that each dye of the Papanicolaou stain takes away.

A laboratory's batches of dye, its glass and its scanner give all of its slides a look of their own, which models
learn instead of disease when they can. So the look is drawn in two steps: the site's from its name, the same in
every cohort, and the slide's around it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from papsmear import seeds

Rgb = tuple[float, float, float]

# Optical densities at the strength of a typical cell; read off the Herlev pictures (Jantzen et al. 2005).
GLASS: Rgb = (238.0, 235.0, 231.0)
CYANOPHILIC: Rgb = (0.52, 0.235, 0.21)
EOSINOPHILIC: Rgb = (0.09, 0.52, 0.32)
ORANGEOPHILIC: Rgb = (0.06, 0.36, 0.66)
HAEMATOXYLIN: Rgb = (0.90, 0.98, 0.58)


@dataclass(frozen=True)
class Stain:
    """Everything of a slide's colours; densities are natural-log optical densities of R, G, B.

    Attributes:
        glass: Colour of empty glass, RGB in 0..255.
        cyanophilic: Light green: the blue-green cytoplasm of intermediate and deeper cells.
        eosinophilic: Pink cytoplasm of superficial cells.
        orangeophilic: Orange G, of keratin.
        haematoxylin: Nuclei.
        strength: Factor on all densities, 0.8..1.25.
    """

    glass: Rgb
    cyanophilic: Rgb
    eosinophilic: Rgb
    orangeophilic: Rgb
    haematoxylin: Rgb
    strength: float

    def density(self) -> NDArray[np.float32]:
        """(3, 4): what one unit of cyanophilic, eosinophilic, orange and nuclear dye takes from R, G and B."""
        dyes = (self.cyanophilic, self.eosinophilic, self.orangeophilic, self.haematoxylin)
        return np.float32(self.strength) * np.array(dyes, np.float32).T


def draw_stain(rng: np.random.Generator, site: str) -> Stain:
    """The look of one slide of `site`: the site's own shift, from its name alone, plus the slide's from `rng`."""
    site_rng = seeds.rng(0, "phantom site", site)

    def around(typical: Rgb, site_shift: float = 0.1) -> Rgb:
        shift = site_rng.normal(0, site_shift, 3) + rng.normal(0, 0.03, 3)
        red, green, blue = (float(v) for v in np.array(typical) * np.exp(np.clip(shift, -0.22, 0.22)))
        return red, green, blue

    tint = site_rng.normal(0, 3.0, 3) + rng.normal(0, 1.2, 3)
    lamp = site_rng.uniform(-8, 8) + rng.normal(0, 2)
    red, green, blue = (float(v) for v in np.clip(np.array(GLASS) + tint + lamp, 205, 250))
    strength = np.exp(np.clip(site_rng.normal(0, 0.1) + rng.normal(0, 0.06), -0.22, 0.22))
    return Stain(
        glass=(red, green, blue),
        cyanophilic=around(CYANOPHILIC, 0.08),
        eosinophilic=around(EOSINOPHILIC),
        orangeophilic=around(ORANGEOPHILIC),
        haematoxylin=around(HAEMATOXYLIN, 0.05),
        strength=float(strength),
    )
