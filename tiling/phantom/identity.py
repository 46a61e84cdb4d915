"""Whose slide it is: the invented patient of a phantom, and the pictures that show the name.

Real slides carry names on their label and in their metadata; phantoms do too, so that a test can look for leaks.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Identity:
    """What a scanner writes about a slide and nobody may see downstream: on the label and in the description."""

    patient: str
    user: str
    date: str
    barcode: str


def label_picture(identity: Identity) -> NDArray[np.uint8]:
    """(463, 387, 3): a paper label with the name, the date and a barcode."""
    label = np.full((463, 387, 3), (246, 244, 236), np.uint8)
    lines = [*identity.patient.split(" "), identity.date, identity.barcode]
    for row, line in enumerate(lines):
        cv2.putText(label, line, (18, 60 + 52 * row), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (25, 25, 40), 2, cv2.LINE_AA)
    bits = np.unpackbits(np.frombuffer(identity.barcode.encode("ascii"), np.uint8))
    bars = np.repeat(bits, 350 // bits.size)
    label[360:440, 18 : 18 + bars.size][:, bars == 1] = 20
    return label


def macro_picture(thumbnail: NDArray[np.uint8], label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(431, 1280, 3): the whole glass with its label on the left and the scanned area on the right."""
    macro = np.full((431, 1280, 3), (214, 216, 214), np.uint8)
    macro[15:416, 15:350] = cv2.resize(label, (335, 401), interpolation=cv2.INTER_AREA)
    scale = 330 / max(thumbnail.shape)
    width, height = (max(1, round(side * scale)) for side in thumbnail.shape[1::-1])
    seen = cv2.resize(thumbnail, (width, height), interpolation=cv2.INTER_AREA)
    top, left = (431 - height) // 2, 700 - width // 2
    macro[top : top + height, left : left + width] = seen
    return macro
