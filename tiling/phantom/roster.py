"""Who is in a phantom cohort: patients, their slides, labels, folds and sites, and the names that must never leak."""

from dataclasses import dataclass

import numpy as np

from papsmear import seeds
from papsmear.tiling.phantom.identity import Identity

# Invented, so that a leak cannot be mistaken for anything else.
_FIRST = (
    "Zephyrine",
    "Quillon",
    "Ottoline",
    "Thessaly",
    "Isaura",
    "Perpetua",
    "Marwenna",
    "Sidonie",
    "Eudora",
    "Clemency",
)
_LAST = ("Quillfeather", "Thistlewick", "Umberglass", "Farrowmere", "Oxleywood", "Brackenjay", "Dunmorrow", "Vexleigh")
_USERS = ("otto.phantasm", "wilma.mirage", "ines.figment")


@dataclass(frozen=True)
class Entry:
    """One slide of the cohort, before it is made."""

    slide_id: str
    seed: int
    label: int
    patient_id: str
    fold: int
    site: str
    scanner: str
    identity: Identity


def draw_roster(slides: int, prevalence: float, sites: int, folds: int, seed: int) -> list[Entry]:
    """The slides of a cohort, in the order of their ids.

    Of each label about a sixth of the slides are a second slide of their patient, as long as every fold can have a
    patient. Patients go whole to the fold that has fewest slides of their label; sites are spread over both labels.
    """
    rng = seeds.rng(seed, "roster")
    positive = round(slides * prevalence)
    if 0 < prevalence < 1 and slides > 1:
        positive = min(max(positive, 1), slides - 1)
    patients = []  # (label, number of slides, fold, site)
    in_fold = np.zeros((2, folds), int)
    for label, count in ((1, positive), (0, slides - positive)):
        pairs = max(0, min(count // 6, count - folds))
        order = rng.permutation(sites)
        for number in range(count - pairs):
            size = 2 if number < pairs else 1
            fold = min(range(folds), key=lambda f: (in_fold[label, f], in_fold[:, f].sum(), f))
            in_fold[label, fold] += size
            patients.append((label, size, fold, int(order[(number + number // sites) % sites]) + 1))
    rows = [
        (label, patient, fold, site)
        for patient, (label, size, fold, site) in zip(rng.permutation(len(patients)) + 1, patients, strict=True)
        for _ in range(size)
    ]
    return [
        Entry(
            slide_id=f"phantom_{number:04d}",
            seed=seeds.derive(seed, "slide", number),
            label=rows[row][0],
            patient_id=f"patient_{rows[row][1]:04d}",
            fold=rows[row][2],
            site=f"site_{rows[row][3]}",
            scanner=f"scanner_{rows[row][3]}",
            identity=_identity(seed, int(rows[row][1]), number),
        )
        for number, row in enumerate(rng.permutation(len(rows)), start=1)
    ]


def _identity(seed: int, patient: int, slide: int) -> Identity:
    rng = seeds.rng(seed, "identity", patient)
    name = f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"
    day = f"{rng.integers(1, 13):02d}/{rng.integers(1, 29):02d}/{rng.integers(19, 26):02d}"
    barcode = f"CYT{seeds.derive(seed, 'barcode', slide) % 10**8:08d}"
    return Identity(name, str(rng.choice(_USERS)), day, barcode)
