"""Single drawn cells with their outlines, in the layouts in which the public sets are distributed.

What reads Herlev and SIPaKMeD then has something to read where neither can be downloaded. The cells come from a
random branch of their own: none of them is on a phantom slide.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear import seeds
from papsmear.files import whole
from papsmear.progress import track
from papsmear.tiling.phantom.cells import draw_cell
from papsmear.tiling.phantom.others import OTHER_KINDS, draw_other
from papsmear.tiling.phantom.sprite import HERLEV_CLASSES, SIPAKMED_CLASSES, Sprite
from papsmear.tiling.phantom.stain import Stain, draw_stain

SET_MPP = 0.201  # µm/px of the Herlev pictures; SIPaKMeD publishes none and is drawn at the same
MASK_RGB = {"background": (255, 0, 0), "cytoplasm": (0, 0, 128), "nucleus": (0, 0, 255)}
_MOST_A_PICTURE = 4


def write_cell_sets(out: Path, seed: int, per_class: int = 20) -> None:
    """Writes `out`/herlev and `out`/sipakmed, each class with `per_class` cells.

    Herlev: `<class>/<name>.BMP` and the mask `<name>-d.bmp` in MASK_RGB; the first number of a name is the source
    picture, which one to four cells share. SIPaKMeD: `<class>/<class>/CROPPED/<picture>_<cell>.bmp` with the corners
    of cytoplasm and nucleus in `..._cyt.dat` and `..._nuc.dat`, one `x,y` a line, in pixels of the cropped picture.
    """
    with whole(out / "herlev") as folder:
        for kind in track(HERLEV_CLASSES, "drawing cells: Herlev"):
            _write_herlev(folder / kind, kind, seed, per_class)
    with whole(out / "sipakmed") as folder:
        for kind in track(SIPAKMED_CLASSES, "drawing cells: SIPaKMeD"):
            _write_sipakmed(folder / kind / kind / "CROPPED", kind, seed, per_class)


def _write_herlev(folder: Path, kind: str, seed: int, per_class: int) -> None:
    folder.mkdir(parents=True)
    first = 145_000_000 + 1_500_000 * HERLEV_CLASSES.index(kind)  # no two classes share a picture
    for picture, cell in _pictures(seed, "herlev", kind, per_class):
        rng = seeds.rng(seed, "cell sets", "herlev", kind, picture, cell)
        stain = _stain(seed, "herlev", kind, picture)
        rgb, sprite = _photograph(kind, stain, rng)
        mask = np.full((*sprite.nucleus.shape, 3), MASK_RGB["background"], np.uint8)
        mask[sprite.cytoplasm] = MASK_RGB["cytoplasm"]
        mask[sprite.nucleus] = MASK_RGB["nucleus"]
        number = first + seeds.derive(seed, "cell sets", "number", picture) % 1000 + 1000 * picture
        name = f"{number}-{number + 8 + picture % 13}-{cell:03d}"
        _write_bmp(folder / f"{name}.BMP", rgb)
        _write_bmp(folder / f"{name}-d.bmp", mask)


def _write_sipakmed(folder: Path, kind: str, seed: int, per_class: int) -> None:
    folder.mkdir(parents=True)
    for picture, cell in _pictures(seed, "sipakmed", kind, per_class):
        rng = seeds.rng(seed, "cell sets", "sipakmed", kind, picture, cell)
        rgb, sprite = _photograph(kind, _stain(seed, "sipakmed", kind, picture), rng)
        name = f"{picture:03d}_{cell:02d}"
        _write_bmp(folder / f"{name}.bmp", rgb)
        for part, mask in (("cyt", sprite.cytoplasm), ("nuc", sprite.nucleus)):
            lines = (f"{x:.6f},{y:.6f}\n" for x, y in _corners(mask))
            (folder / f"{name}_{part}.dat").write_text("".join(lines), encoding="ascii")


def _pictures(seed: int, cell_set: str, kind: str, per_class: int) -> list[tuple[int, int]]:
    """(source picture, cell in it) of each cell, both from 1."""
    rng = seeds.rng(seed, "cell sets", cell_set, kind)
    named: list[tuple[int, int]] = []
    picture = 0
    while len(named) < per_class:
        picture += 1
        count = min(int(rng.integers(1, _MOST_A_PICTURE + 1)), per_class - len(named))
        named += [(picture, cell) for cell in range(1, count + 1)]
    return named


def _stain(seed: int, cell_set: str, kind: str, picture: int) -> Stain:
    """One look a source picture; the pictures of a set come from three smears' batches."""
    rng = seeds.rng(seed, "cell sets", cell_set, kind, picture, "stain")
    return draw_stain(rng, f"{cell_set} {rng.integers(3)}")


def _photograph(kind: str, stain: Stain, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Sprite]:
    """One cell as a microscope's camera takes it, (H, W, 3) RGB, with the sprite cut to the picture."""
    sprite = draw_cell(kind, SET_MPP, stain, rng)
    rows, columns = (np.flatnonzero(sprite.cytoplasm.any(axis=axis)) for axis in (1, 0))
    margin = rng.integers(3, 14, 4)
    top, bottom = max(int(rows[0] - margin[0]), 0), int(rows[-1] + margin[1])
    left, right = max(int(columns[0] - margin[2]), 0), int(columns[-1] + margin[3])
    cut = (slice(top, bottom), slice(left, right))
    cell = Sprite(sprite.transmittance[cut], kind, sprite.cytoplasm[cut], sprite.nucleus[cut])
    scene = cell.transmittance.copy()
    for _ in range(int(rng.poisson(0.6))):
        _add_neighbour(scene, draw_cell(kind, SET_MPP, stain, rng).transmittance, rng)
    for _ in range(int(rng.poisson(0.5))):
        dirt = OTHER_KINDS[rng.integers(3)]
        _add_neighbour(scene, draw_other(dirt, SET_MPP, stain, rng).transmittance, rng)
    rgb = scene * (np.array(stain.glass, np.float32) * rng.uniform(0.82, 1.0))
    rgb = cv2.GaussianBlur(rgb, (0, 0), float(rng.uniform(0.35, 1.0)))
    rgb = rgb + rng.normal(0, rng.uniform(1.0, 2.5), rgb.shape)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8), cell


def _add_neighbour(scene: NDArray[np.float32], through: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Lets the edge of something else reach into one corner, by no more than a third of the picture, in place."""
    height, width = through.shape[:2]
    reach_y = min(int(rng.uniform(0.3, 0.6) * height), scene.shape[0] // 3)
    reach_x = min(int(rng.uniform(0.3, 0.6) * width), scene.shape[1] // 3)
    flip_y, flip_x = (1 if rng.random() < 0.5 else -1 for _ in range(2))
    scene[::flip_y, ::flip_x][:reach_y, :reach_x] *= through[height - reach_y :, width - reach_x :]


def _corners(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The outline of the largest piece of a mask, (N, 2) x, y in px."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
    return max(outlines, key=cv2.contourArea).reshape(-1, 2).astype(np.float64)


def _write_bmp(path: Path, rgb: NDArray[np.uint8]) -> None:
    _, data = cv2.imencode(".bmp", np.ascontiguousarray(rgb[..., ::-1]))
    path.write_bytes(data.tobytes())
