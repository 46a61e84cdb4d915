"""Drawing one squamous or columnar cell: outlines in µm first, then cytoplasm and nuclei as layers of dye."""

from dataclasses import dataclass

import cv2
import numpy as np

from papsmear.tiling.phantom import canvas
from papsmear.tiling.phantom.canvas import Canvas, Outline, Plane
from papsmear.tiling.phantom.cellkinds import CELL_KINDS
from papsmear.tiling.phantom.dye import Dye
from papsmear.tiling.phantom.morphology import Morphology
from papsmear.tiling.phantom.nucleus import Nucleus, draw_nucleus, outline_nuclei
from papsmear.tiling.phantom.sprite import Sprite
from papsmear.tiling.phantom.stain import Stain

MARGIN_UM = 1.5
_COARSE_UM = 1.5  # of the grid on which a cell's thickness is worked out


def draw_cell(kind: str, mpp: float, stain: Stain, rng: np.random.Generator) -> Sprite:
    """One cell of a Herlev or SIPaKMeD class at `mpp` µm/px. The same `rng` state gives the same cell at every mpp."""
    variants = CELL_KINDS[kind]
    return draw_morphology(variants[rng.integers(len(variants))], kind, mpp, stain, rng)


def draw_morphology(form: Morphology, kind: str, mpp: float, stain: Stain, rng: np.random.Generator) -> Sprite:
    """One cell of the form; see draw_cell."""
    shape = _Shape.draw(form, rng)
    area = Canvas.around(np.concatenate([shape.cell, *(n.outline for n in shape.nuclei)]), MARGIN_UM, mpp)
    cell = area.fill(shape.cell)
    for nucleus in shape.nuclei:  # a cell is never cut by its own nucleus: the membrane bulges over it
        np.maximum(cell, area.fill(nucleus.bulge()), out=cell)
    dye = _cytoplasm(form, shape, cell, area, rng)
    nuclear = np.zeros(area.shape, bool)
    for nucleus in shape.nuclei:
        where, window = area.window(nucleus.outline, 1.0)
        ink, clearing, inside = draw_nucleus(form, nucleus, window, rng)
        dye.sheet[where] *= 1 - clearing
        dye.pink[where] *= 1 - clearing
        dye.nuclear[where] += ink
        nuclear[where] |= inside
    return Sprite(dye.light(stain, mpp), kind, (cell > 0.5) | nuclear, nuclear)


@dataclass(frozen=True)
class _Shape:
    """A cell before its texture.

    Attributes:
        cell: Its outline.
        nuclei: One or two.
        halo: Outline of a koilocyte's cavity, or None.
        fold: The flap that lies on the cell and the part of the cell it left, or None.
    """

    cell: Outline
    nuclei: tuple[Nucleus, ...]
    halo: Outline | None
    fold: tuple[Outline, Outline] | None

    @classmethod
    def draw(cls, form: Morphology, rng: np.random.Generator) -> "_Shape":
        nucleus_um2 = form.nucleus_um2[0] * float(np.exp(np.clip(rng.normal(0, form.nucleus_um2[1]), -0.5, 0.5)))
        ratio = min(0.82, form.nc_ratio[0] * float(np.exp(np.clip(rng.normal(0, form.nc_ratio[1]), -0.5, 0.5))))
        elongation = float(rng.uniform(*form.elongation))
        cell = form.outline(rng, nucleus_um2 / ratio, elongation, form.rough)
        nuclei = outline_nuclei(form, cell, nucleus_um2, rng)
        halo = None
        if form.halo:
            cavity = canvas.rounded(rng, nucleus_um2 * form.halo, float(rng.uniform(1.0, 1.35)), 0.1)
            middle = np.mean([n.outline.mean(axis=0) for n in nuclei], axis=0)
            halo = canvas.turned(cavity, rng.uniform(0, np.pi), (float(middle[0]), float(middle[1])))
        angle = rng.uniform(0, 2 * np.pi)
        cell, nuclei = canvas.turned(cell, angle), tuple(n.turned(angle) for n in nuclei)
        if halo is not None:
            halo = canvas.turned(halo, angle)
        fold = _fold(cell, nuclei, rng) if rng.random() < form.fold else None
        return cls(cell, nuclei, halo, fold)


def _fold(cell: Outline, nuclei: tuple[Nucleus, ...], rng: np.random.Generator) -> tuple[Outline, Outline] | None:
    """A straight crease near the edge: (the flap mirrored in it, the part beyond it); None if it hit a nucleus."""
    angle = rng.uniform(0, 2 * np.pi)
    normal = np.array([np.cos(angle), np.sin(angle)], np.float32)
    far = cell @ normal
    crease = float(far.max() * rng.uniform(0.68, 0.92))
    if any((n.outline @ normal).max() > crease - 1 for n in nuclei):
        return None
    beyond = np.roll(np.arange(len(cell)), -int(far.argmin()))
    part = cell[beyond[far[beyond] > crease]]
    if len(part) < 3:
        return None
    flap = part - 2 * ((part @ normal) - crease)[:, None] * normal
    bow = 1 - 0.25 * rng.random()  # a flap curls: it covers a little less than it left
    flap += (1 - bow) * ((part @ normal) - crease)[:, None] * normal
    return flap.astype(np.float32), part


def _cytoplasm(form: Morphology, shape: _Shape, cell: Plane, area: Canvas, rng: np.random.Generator) -> Dye:
    """The cell without its nucleus. `cell`, its share of each pixel, loses what is folded away."""
    density = form.density * float(np.exp(np.clip(rng.normal(0, 0.22), -0.45, 0.45)))
    share, sheet = _coarse(form, cell, area, rng)
    edge = area.stroke(shape.cell, 0.7, True)
    flap: Plane | None = None
    if shape.fold is not None:
        part, gone = (area.fill(outline) for outline in shape.fold)
        np.maximum(cell - gone, part, out=cell)
        flap = part
        edge *= 1 - gone
        np.maximum(edge, area.stroke(shape.fold[0], 0.7, True), out=edge)
    fine = area.noise(rng, 0.65)
    fine *= 1.5 * form.grain
    fine += 1
    sheet *= fine
    np.maximum(sheet, 0.1, out=sheet)
    if flap is not None:
        sheet *= 1 + 0.75 * flap
    sheet *= cell
    sheet *= density
    for _ in range(int(rng.poisson(form.vacuoles))):
        drop = _bubble(shape.cell, rng)
        where, window = area.window(drop, 1.0)
        sheet[where] *= 1 - 0.45 * window.fill(drop)
    if shape.halo is not None:
        _clear_halo(sheet, shape.halo, cell, density, area, rng)
    lines = edge
    lines *= form.rim
    for _ in range(int(rng.poisson(form.wrinkles))):
        _add_crease(lines, shape.cell, area, rng)
    lines *= cell
    lines *= density
    sheet += lines
    nuclear = lines
    nuclear *= 0.15
    if form.granules:
        specks = _granules(form, shape.cell, area, rng)
        specks *= cell
        nuclear += specks
    orange = min(1.0, form.orange * float(rng.uniform(0.6, 1.15)))
    share *= sheet
    return Dye(sheet, share, orange, nuclear)


def _coarse(form: Morphology, cell: Plane, area: Canvas, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Share of eosin and thickness of the sheet (1 in the middle, 1 - dome at the edge), each (H, W).

    Both vary slowly, so they are worked out on a grid of _COARSE_UM.
    """
    width, height = (max(8, int(extent / _COARSE_UM)) for extent in area.extent_um)
    coarse = cv2.resize(cell, (width, height), interpolation=cv2.INTER_AREA)
    smooth = np.clip(2 * cv2.GaussianBlur(coarse, (0, 0), 0.16 * min(width, height)) - 0.9, 0, 1)
    grid = Canvas(_COARSE_UM, (height, width), (0.0, 0.0), area.extent_um)
    texture = 0.9 * grid.noise(rng, 8.0) + 0.7 * grid.noise(rng, 2.0)
    sheet = (1 - form.dome + form.dome * smooth) * (1 + form.grain * texture)
    pink = float(rng.random() < form.eosinophilic)
    share = np.clip(abs(pink - rng.beta(1.2, 13)) + 0.06 * grid.noise(rng, 12.0), 0, 1)
    full = (cv2.resize(plane, cell.shape[::-1], interpolation=cv2.INTER_LINEAR) for plane in (share, sheet))
    share, sheet = (np.asarray(plane, np.float32) for plane in full)
    return share, sheet


def _clear_halo(
    sheet: Plane, halo: Outline, cell: Plane, density: float, area: Canvas, rng: np.random.Generator
) -> None:
    """Empties the cavity of a koilocyte and packs its cytoplasm into the rim around it, in place."""
    cavity = area.fill(halo)
    packed = cv2.GaussianBlur(cavity, (0, 0), max(1.7 / area.mpp, 0.4)) * (1 - cavity) * cell
    wisps = np.clip(float(rng.uniform(0.72, 0.88)) + 0.08 * area.noise(rng, 2.0), 0, 1)
    sheet *= 1 - wisps * cavity
    sheet += density * float(rng.uniform(1.0, 2.2)) * packed


def _bubble(cell: Outline, rng: np.random.Generator) -> Outline:
    reach = cell[rng.integers(len(cell))] * rng.uniform(0.2, 0.8)
    drop = canvas.rounded(rng, rng.uniform(1.5, 9.0), 1.0, 0.03)
    return canvas.turned(drop, 0.0, (float(reach[0]), float(reach[1])))


def _add_crease(lines: Plane, cell: Outline, area: Canvas, rng: np.random.Generator) -> None:
    """Draws a soft curve across part of the cell, in place."""
    start, stop = (cell[rng.integers(len(cell))] * rng.uniform(0.2, 0.95) for _ in range(2))
    middle = (start + stop) / 2 + rng.normal(0, 0.15, 2) * np.linalg.norm(stop - start)
    along = np.linspace(0, 1, 12)[:, None]
    curve = (1 - along) ** 2 * start + 2 * along * (1 - along) * middle + along**2 * stop
    line = curve.astype(np.float32)
    strength, width_um = rng.uniform(0.12, 0.45), rng.uniform(0.5, 1.4)
    where, window = area.window(line, 3.0)
    soft = cv2.GaussianBlur(window.stroke(line, width_um, False), (0, 0), max(0.45 / area.mpp, 0.3))
    lines[where] += strength * soft


def _granules(form: Morphology, cell: Outline, area: Canvas, rng: np.random.Generator) -> Plane:
    """Keratohyalin granules and specks: points of haematoxylin."""
    low, high = cell.min(axis=0), cell.max(axis=0)
    box_um2 = float(np.prod(high - low))
    count = int(rng.poisson(form.granules * float(rng.gamma(2.0, 0.5)) * box_um2 / 1000)) if form.granules else 0
    where = rng.uniform(low, high, (count, 2))
    return area.dots(where, rng.gamma(2.0, 0.06, count))
