"""The classes of the public single-cell sets: folder names, short names as in the study's tables, and sides.

Data, not code: a set is a row of classes, and everything else asks these rows. The side says what the class means for a
diagnosis; a class that is `neither` is left out of the binary scores (in the study's first version, metaplastic cells).
"""

from dataclasses import dataclass
from typing import Literal

Side = Literal["positive", "negative", "neither"]


@dataclass(frozen=True)
class CellClass:
    """One class. `folder` is a regular expression for a folder's name, taken in small letters and letters only."""

    name: str
    short: str
    side: Side
    folder: str


# Jantzen et al. 2005. The archive spells "superficiel"; copies spell it otherwise, and say "mild" for "light".
HERLEV = (
    CellClass("carcinoma in situ", "CIS", "positive", r"carcinoma(insitu)?"),
    CellClass("light dysplastic", "LD", "positive", r"(light|mild)dysplas(tic|ia)"),
    CellClass("moderate dysplastic", "MD", "positive", r"moderatedysplas(tic|ia)"),
    CellClass("severe dysplastic", "SD", "positive", r"severedysplas(tic|ia)"),
    CellClass("normal columnar", "NC", "negative", r"(normal)?columnar"),
    CellClass("normal intermediate", "NI", "negative", r"(normal)?intermediate"),
    CellClass("normal superficial", "NS", "negative", r"(normal)?superfici[ae]l"),
)

# Plissiti et al. 2018.
SIPAKMED = (
    CellClass("dyskeratotic", "D", "positive", r"(im)?dyskeratotic"),
    CellClass("koilocytotic", "K", "positive", r"(im)?koilocytotic"),
    CellClass("metaplastic", "M", "neither", r"(im)?metaplastic"),
    CellClass("parabasal", "P", "negative", r"(im)?parabasal"),
    CellClass("superficial-intermediate", "SI", "negative", r"(im)?superficial(intermediate)?"),
)

CLASSES = {"herlev": HERLEV, "sipakmed": SIPAKMED}
TITLES = {"herlev": "Herlev", "sipakmed": "SIPaKMeD"}

# How many cells the public sets have, so that a report can say where it saw another number.
PUBLISHED_CELLS = {"herlev": 917, "sipakmed": 4049}
