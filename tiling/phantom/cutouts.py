"""Real cells for phantom slides: cut out of a set of labelled single cells in the Herlev layout.

Two layouts are read: the public archive's `<class>/<name>.BMP` with `<name>-d.bmp` beside it, and
`images/<class>/<name>.jpg` with `masks/<class>/<name>-d.jpg`. A cell is what its mask calls cytoplasm or nucleus; how
much light it lets through is its colour over the colour of the empty glass in its own picture.

The first number of a file's name is the picture that the cell was taken from. Cells of one picture share stain, focus
and patient, so pictures are dealt out to folds whole.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear import seeds
from papsmear.errors import UsageError
from papsmear.tiling.phantom.masks import parts_of
from papsmear.tiling.phantom.sprite import HERLEV_CLASSES, Sprite

NATIVE_MPP = 0.201  # Jantzen et al. 2005
_ENDINGS = (".bmp", ".jpg", ".jpeg", ".png")
_DARKEST_GLASS = 190.0

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


@dataclass(frozen=True)
class CutOut:
    """One labelled cell: its class, its two files, the picture it was taken from, and its µm/px (None: lost)."""

    kind: str
    image: Path
    mask: Path
    source: str
    mpp: float | None


def find_cutouts(folder: Path) -> list[CutOut]:
    """The cells of a set in the Herlev layout, in the order of class and name.

    Every file is decoded once, so that a damaged one is found before a slide is begun. UsageError where there is no
    such set, a class is missing, or files cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f"--cells {folder}: there is no such folder")
    copy = (folder / "images").is_dir()
    pairs: list[tuple[str, Path, Path]] = []
    problems: list[str] = []
    for kind in HERLEV_CLASSES:
        images = folder / "images" / kind if copy else folder / kind
        masks = folder / "masks" / kind if copy else images
        found = _pairs(images, masks)
        pairs += [(kind, image, mask) for image, mask in found]
        if not found:
            problems.append(f"no image with a '-d' mask in {images}")
    if problems:
        raise UsageError(f"--cells {folder}: not a whole set in the Herlev layout: {'; '.join(problems)}")
    sizes = [_check(image, mask, problems) for _, image, mask in pairs]
    if problems:
        raise UsageError(f"--cells {folder}: mend or remove the damaged pairs: {'; '.join(problems)}")
    scaled = len(set(sizes)) > 1 or sizes[0][0] != sizes[0][1]
    mpp = NATIVE_MPP if scaled else None
    return [CutOut(kind, image, mask, image.stem.partition("-")[0], mpp) for kind, image, mask in pairs]


def _pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    if not images.is_dir() or not masks.is_dir():
        return []
    mask_of = {file.stem: file for file in sorted(masks.iterdir()) if file.suffix.lower() in _ENDINGS}
    files = [file for file in sorted(images.iterdir()) if file.suffix.lower() in _ENDINGS]
    return [(file, mask_of[f"{file.stem}-d"]) for file in files if f"{file.stem}-d" in mask_of]


def _check(image: Path, mask: Path, problems: list[str]) -> tuple[int, int]:
    shapes = []
    for file in (image, mask):
        try:
            shapes.append(_read(file).shape)
        except ValueError as error:
            problems.append(str(error))
    if len(shapes) == 2 and shapes[0] != shapes[1]:
        problems.append(f"{mask} is {shapes[1][1]}x{shapes[1][0]} px, its picture {shapes[0][1]}x{shapes[0][0]}")
    elif len(shapes) == 2 and not parts_of(_read(mask)).cell.any():
        problems.append(f"{mask} marks no cell")
    return (shapes[0][1], shapes[0][0]) if shapes else (0, 0)


def _read(file: Path) -> NDArray[np.uint8]:
    pixels = np.frombuffer(file.read_bytes(), np.uint8)
    bgr = cv2.imdecode(pixels, cv2.IMREAD_COLOR) if pixels.size else None
    if bgr is None:
        raise ValueError(f"{file} cannot be decoded")
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


class RealCells:
    """Cells of one fold's cut-outs, at `mpp` µm/px, each time turned, resized and stained a little differently."""

    kinds = HERLEV_CLASSES

    def __init__(self, cutouts: list[CutOut], mpp: float) -> None:
        self._mpp = mpp
        self._of_kind = {kind: [cell for cell in cutouts if cell.kind == kind] for kind in HERLEV_CLASSES}

    def cell(self, kind: str, rng: np.random.Generator) -> Sprite:
        """A cell of one of HERLEV_CLASSES."""
        choice = self._of_kind[kind]
        cutout = choice[int(rng.integers(len(choice)))]
        density, cell, nucleus = _prepared(cutout)
        scale = _scale(cutout, int(cell.sum()), self._mpp, rng)
        matrix, size = _turn_and_scale(cell, scale, float(rng.uniform(0, 360)))
        density = density * np.float32(rng.lognormal(0, 0.08))
        if scale < 1:  # average first: warping alone would skip pixels
            density = np.asarray(cv2.GaussianBlur(density, (0, 0), 0.4 / scale), np.float32)
        density = np.asarray(cv2.warpAffine(density, matrix, size, flags=cv2.INTER_LINEAR), np.float32)
        edge = np.zeros(density.shape[:2], bool)
        edge[[0, -1]], edge[:, [0, -1]] = True, True
        density[edge] = 0
        cell, nucleus = (
            cv2.warpAffine(part.astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST).astype(bool)
            for part in (cell, nucleus)
        )
        return Sprite(np.exp(-density).astype(np.float32), kind, cell, nucleus)


@lru_cache(maxsize=1024)
def _prepared(cutout: CutOut) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Optical density (H, W, 3) of the cell alone, 0 around it with a soft edge; the cell; its nucleus."""
    rgb = _read(cutout.image).astype(np.float32)
    around, cell, nucleus = parts_of(_read(cutout.mask))
    glass = _glass_colour(rgb, around, cell)
    density = np.maximum(-np.log(np.maximum(rgb, 4) / glass), 0)
    soft = cv2.GaussianBlur(cell.astype(np.float32), (0, 0), 1.5)
    soft = np.clip(2 * soft - 0.6, 0, 1)  # reaches 0 about a pixel outside the mask
    return np.asarray(density * soft[:, :, None], np.float32), cell, nucleus


def _glass_colour(rgb: NDArray[np.float32], around: NDArray[np.bool_], cell: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Colour of the empty glass: the brighter part of what lies around the cell, other cells left out so.

    Padding that a copy added is flat and not glass; pictures filled by the cell fall back on its brightest pixels.
    Where a cell lies on others, nothing around it is glass; then the colour stops at `_DARKEST_GLASS`.
    """
    flat = np.ptp(rgb, axis=1).max(-1) < 12, np.ptp(rgb, axis=0).max(-1) < 12
    real = ~(flat[0][:, None] | flat[1][None, :])
    level = rgb.sum(-1)
    free = around & real
    if free.sum() < 50:
        free = cell
        bright = free & (level >= np.quantile(level[free], 0.98))
    else:
        bright = free & (level >= np.quantile(level[free], 0.6))
    return np.asarray(np.maximum(np.median(rgb[bright], axis=0), _DARKEST_GLASS), np.float32)


def _scale(cutout: CutOut, area_px: int, mpp: float, rng: np.random.Generator) -> float:
    """Factor from the picture's pixels to the slide's."""
    if cutout.mpp is not None:
        return float(cutout.mpp / mpp * rng.lognormal(0, 0.03))
    diameter_um = TYPICAL_UM[cutout.kind] * rng.lognormal(0, 0.12)
    return float(diameter_um / mpp / (2 * np.sqrt(area_px / np.pi)))


def _turn_and_scale(
    cell: NDArray[np.bool_], scale: float, degrees: float
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """The affine map that turns and scales the cell's box into the middle of an array of the returned size."""
    rows, columns = np.flatnonzero(cell.any(1)), np.flatnonzero(cell.any(0))
    corners = np.array([(x, y, 1) for x in columns[[0, -1]] for y in rows[[0, -1]]], float)
    middle = corners[:, :2].mean(0)
    matrix = np.asarray(cv2.getRotationMatrix2D((float(middle[0]), float(middle[1])), degrees, scale), np.float64)
    spread = np.ptp(corners @ matrix.T, axis=0)
    width, height = (int(np.ceil(side)) + 8 for side in spread)
    matrix[:, 2] += np.array([(width - 1) / 2, (height - 1) / 2]) - middle
    return matrix, (width, height)
