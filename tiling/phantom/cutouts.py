"""Cells to cut out for phantom slides: the files of a set of labelled single cells with their masks.

Three layouts are read: Herlev's `<class>/<name>.BMP` with `<name>-d.bmp` beside it, `images/<class>/<name>.jpg` with
`masks/<class>/<name>-d.jpg`, and SIPaKMeD's `<class>/<class>/CROPPED/<name>.bmp` with the outlines `<name>_cyt.dat` and
`<name>_nuc.dat`. A cell is what its mask calls cytoplasm or nucleus.

The first number of a file's name is the picture that the cell was taken from, which SIPaKMeD counts class by class.
Cells of one picture share stain, focus and patient, so pictures are dealt out to folds whole.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear import seeds
from papsmear.errors import InputError, UsageError
from papsmear.tiling.phantom.cellkinds import CELL_KINDS
from papsmear.tiling.phantom.masks import Parts, parts_of
from papsmear.tiling.phantom.outlines import Outlines
from papsmear.tiling.phantom.sprite import HERLEV_CLASSES, SIPAKMED_CLASSES

NATIVE_MPP = 0.201  # Jantzen et al. 2005
_ENDINGS = (".bmp", ".jpg", ".jpeg", ".png")

# Diameter in µm of a disc of the cell's area, for copies of the set that have lost their scale. Estimates, not the
# set's own measurements. Intermediate cells are 35-40 µm across and superficial ones slightly larger (Eurocytology,
# cervical cytology, module 4). The others follow from the area of the nucleus, 35 µm² in intermediate cells and, by
# the Bethesda System's rule of thumb, over three times that in dysplasia (taken as 108-128 µm²; columnar 51 µm²),
# over its median share of the cell, measured in the Herlev masks: columnar 0.33, light 0.26, moderate 0.35, severe
# 0.47, in situ 0.61.
TYPICAL_UM = {
    "normal_superficiel": 44.0,
    "normal_intermediate": 37.0,
    "normal_columnar": 14.0,
    "light_dysplastic": 25.0,
    "moderate_dysplastic": 21.0,
    "severe_dysplastic": 17.5,
    "carcinoma_in_situ": 15.0,
}
# SIPaKMeD does not tell its µm/px: its cells become as large as those that are drawn, the mean over a class's forms.
TYPICAL_UM |= {
    kind: float(np.mean([2 * np.sqrt(form.nucleus_um2[0] / form.nc_ratio[0] / np.pi) for form in CELL_KINDS[kind]]))
    for kind in SIPAKMED_CLASSES
}


@dataclass(frozen=True)
class CutOut:
    """One labelled cell: class, picture, mask, the picture it was taken from, and its µm/px (None: not known)."""

    kind: str
    image: Path
    mask: Path | Outlines
    source: str
    mpp: float | None

    def read(self) -> tuple[NDArray[np.uint8], Parts]:
        """Its picture (H, W, 3) RGB, and what its mask shows. InputError, naming the file, where one is damaged."""
        rgb = _read(self.image)
        size = (rgb.shape[0], rgb.shape[1])
        if isinstance(self.mask, Outlines):
            try:
                return rgb, self.mask.parts(size)
            except InputError as error:
                raise InputError(f"{self.image}: its mask {error}") from error
        mask = _read(self.mask)
        if mask.shape != rgb.shape:
            raise InputError(f"{self.mask} is {mask.shape[1]}x{mask.shape[0]} px, its picture {size[1]}x{size[0]}")
        parts = parts_of(mask)
        if not parts.cell.any():
            raise InputError(f"{self.mask} marks no cell")
        return rgb, parts


def find_cutouts(folder: Path) -> list[CutOut]:
    """The cells of a set in the layout of Herlev or SIPaKMeD, in the order of class and name.

    Every file is decoded once, so that a damaged one is found before a slide is begun. UsageError where there is no
    such set, a class is missing, or files cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f"--cells {folder}: there is no such folder")
    outlined = any((folder / kind).is_dir() for kind in SIPAKMED_CLASSES)
    found = _outlined(folder) if outlined else _masked(folder)
    if empty := [where for where, cells in found if not cells]:
        layout, wanted = ("SIPaKMeD", "'_cyt.dat' and '_nuc.dat' outlines") if outlined else ("Herlev", "a '-d' mask")
        lacks = "; ".join(f"no image with {wanted} in {where}" for where in empty)
        raise UsageError(f"--cells {folder}: not a whole set in the {layout} layout: {lacks}")
    cutouts = [cutout for _, cells in found for cutout in cells]
    sizes: set[tuple[int, ...]] = set()
    problems: list[str] = []
    for cutout in cutouts:
        try:
            sizes.add(cutout.read()[0].shape[:2])
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise UsageError(f"--cells {folder}: mend or remove the damaged pairs: {'; '.join(problems)}")
    squares = len(sizes) == 1 and len(set(*sizes)) == 1  # of a copy whose cells were brought to one size
    return [replace(cutout, mpp=None) for cutout in cutouts] if squares else cutouts


def _masked(folder: Path) -> list[tuple[Path, list[CutOut]]]:
    """The cells of each Herlev class, and where they lie."""
    copy = (folder / "images").is_dir()
    found = []
    for kind in HERLEV_CLASSES:
        images = folder / "images" / kind if copy else folder / kind
        masks = folder / "masks" / kind if copy else images
        mask_of = {file.stem: file for file in _pictures(masks)}
        cells = [
            CutOut(kind, file, mask_of[f"{file.stem}-d"], file.stem.partition("-")[0], NATIVE_MPP)
            for file in _pictures(images)
            if f"{file.stem}-d" in mask_of
        ]
        found.append((images, cells))
    return found


def _outlined(folder: Path) -> list[tuple[Path, list[CutOut]]]:
    """The cells of each SIPaKMeD class that have both outlines, and where they lie."""
    found = []
    for kind in SIPAKMED_CLASSES:
        cropped = folder / kind / kind / "CROPPED"
        cells = []
        for file in _pictures(cropped):
            cell, nucleus = (file.with_name(f"{file.stem}_{part}.dat") for part in ("cyt", "nuc"))
            if cell.is_file() and nucleus.is_file():
                source = f"{kind}/{file.stem.partition('_')[0]}"
                cells.append(CutOut(kind, file, Outlines(cell, nucleus), source, mpp=None))
        found.append((cropped, cells))
    return found


def _pictures(folder: Path) -> list[Path]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in files if file.suffix.lower() in _ENDINGS]


def _read(file: Path) -> NDArray[np.uint8]:
    pixels = np.frombuffer(file.read_bytes(), np.uint8)
    bgr = cv2.imdecode(pixels, cv2.IMREAD_COLOR) if pixels.size else None
    if bgr is None:
        raise InputError(f"{file} cannot be decoded")
    return np.asarray(bgr[:, :, ::-1], np.uint8)


def deal(cutouts: list[CutOut], folds: int, seed: int) -> list[list[CutOut]]:
    """Deals the source pictures to `folds`, so that each fold has cells of each class and none shares a picture.

    The rarest class is dealt first, each of its pictures to the fold that has fewest of the class.
    """
    pictures: dict[str, list[CutOut]] = defaultdict(list)
    for cell in cutouts:
        pictures[cell.source].append(cell)
    with_kind = {
        kind: sorted({cell.source for cell in cutouts if cell.kind == kind})
        for kind in sorted({c.kind for c in cutouts})
    }
    fold_of: dict[str, int] = {}
    for kind, names in sorted(with_kind.items(), key=lambda item: (len(item[1]), item[0])):
        seeds.rng(seed, "deal", kind).shuffle(names)
        for name in (name for name in names if name not in fold_of):
            held = [sum(other.kind == kind for n, f in fold_of.items() if f == fold for other in pictures[n])
                    for fold in range(folds)]  # fmt: skip
            fold_of[name] = held.index(min(held))
        present = {fold_of[name] for name in names}
        if len(present) < folds:
            raise UsageError(
                f"--cells: {kind} comes from {len(names)} source pictures, too few for --folds {folds} without sharing "
                f"one; take fewer folds or a larger set"
            )
    dealt: list[list[CutOut]] = [[] for _ in range(folds)]
    for cell in cutouts:
        dealt[fold_of[cell.source]].append(cell)
    return dealt
