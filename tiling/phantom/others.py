"""What lies between the cells: neutrophils, bacteria and debris, mucus, red cells, folded cells."""

from dataclasses import replace

import cv2
import numpy as np

from papsmear.tiling.phantom import canvas
from papsmear.tiling.phantom.canvas import Canvas, Outline
from papsmear.tiling.phantom.cellkinds import CELL_KINDS
from papsmear.tiling.phantom.cells import draw_morphology
from papsmear.tiling.phantom.dye import Dye
from papsmear.tiling.phantom.sprite import Sprite
from papsmear.tiling.phantom.stain import Stain

OTHER_KINDS = ("neutrophil", "debris", "bacteria", "mucus", "erythrocyte", "folded")


def draw_other(kind: str, mpp: float, stain: Stain, rng: np.random.Generator) -> Sprite:
    """One thing of OTHER_KINDS at `mpp` µm/px; its masks are empty unless it is a folded cell."""
    if kind == "folded":
        form = CELL_KINDS["im_Superficial-Intermediate"][rng.integers(2)]
        return draw_morphology(
            replace(form, fold=1.0, wrinkles=5.0, density=form.density * 1.35), kind, mpp, stain, rng
        )
    draw = {
        "neutrophil": _neutrophil,
        "debris": _debris,
        "bacteria": _bacteria,
        "mucus": _mucus,
        "erythrocyte": _erythrocyte,
    }[kind]
    dye = draw(mpp, rng)
    empty = np.zeros(dye.sheet.shape, bool)
    return Sprite(dye.light(stain, mpp), kind, empty, empty.copy())


def _neutrophil(mpp: float, rng: np.random.Generator) -> Dye:
    """A small pale cell of 10-12 µm with two to five dark lobes on a thread."""
    cell = canvas.rounded(rng, rng.uniform(75, 115), rng.uniform(1, 1.2), 0.06)
    area = Canvas.around(cell, 2.0, mpp)
    sheet = area.fill(cell) * (0.28 + 0.05 * area.noise(rng, 1.2))
    lobes = int(rng.integers(2, 6))
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.uniform(0.9, 1.6, lobes))
    centre = np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(2.0, 3.2, (lobes, 1))
    ink = 0.9 * area.stroke(centre.astype(np.float32), 0.7, False)
    for x, y in centre.tolist():
        lobe = canvas.rounded(rng, rng.uniform(22, 30) / lobes**0.75, rng.uniform(1, 1.5), 0.06)
        ink = np.maximum(ink, rng.uniform(1.2, 1.7) * area.fill(canvas.turned(lobe, rng.uniform(0, 3), (x, y))))
    ink = ink * np.clip(1 + 0.12 * area.noise(rng, 0.9), 0.5, 1.5)
    return Dye(np.maximum(sheet, 0), np.zeros_like(sheet), 0.0, ink.astype(np.float32))


def _debris(mpp: float, rng: np.random.Generator) -> Dye:
    """Shreds of cytoplasm and dark grains within some 6-20 µm."""
    reach = rng.uniform(3, 10)
    frame = canvas.rounded(rng, np.pi * (reach + 3) ** 2)
    area = Canvas.around(frame, 1.0, mpp)
    sheet, ink = np.zeros(area.shape, np.float32), np.zeros(area.shape, np.float32)
    for _ in range(int(rng.integers(1, 6))):
        x, y = rng.normal(0, reach / 3, 2).clip(-reach, reach).tolist()
        shred = canvas.rounded(rng, rng.uniform(0.6, 14), rng.uniform(1, 2.2), 0.16)
        patch = area.fill(canvas.turned(shred, rng.uniform(0, 3), (x, y)))
        dark = rng.random() < 0.35
        sheet += patch * (0.15 if dark else rng.uniform(0.2, 0.7))
        ink += patch * (rng.uniform(0.4, 1.1) if dark else 0.08)
    sheet *= np.clip(1 + 0.3 * area.noise(rng, 1.3), 0.2, 2)
    eosin = np.float32(rng.beta(0.6, 0.6))
    return Dye(sheet, sheet * eosin, 0.0, ink)


def _bacteria(mpp: float, rng: np.random.Generator) -> Dye:
    """A loose cloud of specks and short rods."""
    reach = rng.uniform(5, 18)
    count = int(rng.integers(8, 60))
    spots = rng.normal(0, reach / 2.5, (count, 2)).clip(-reach, reach)
    area = Canvas.around(canvas.rounded(rng, np.pi * (reach + 2) ** 2, 1.0, 0.0), 2.0, mpp)
    ink = area.dots(spots, rng.gamma(3.0, 0.05, count))
    for x, y in spots[: count // 3].tolist():
        turn = rng.uniform(0, np.pi)
        end = np.array([np.cos(turn), np.sin(turn)]) * rng.uniform(0.6, 1.4)
        rod = np.array([[x, y], [x + end[0], y + end[1]]], np.float32)
        ink += 0.5 * area.stroke(rod, 0.55, False)
    return Dye(0.2 * ink, np.zeros_like(ink), 0.0, ink)


def _mucus(mpp: float, rng: np.random.Generator) -> Dye:
    """A bundle of pale threads, 40-140 µm long."""
    length = rng.uniform(40, 140)
    turn = rng.uniform(0, np.pi)
    along = np.linspace(-0.5, 0.5, 40)
    bend = np.cumsum(np.cumsum(rng.normal(0, 0.0035, 40)))
    spine = np.stack([along, bend - bend.mean()], 1) * length
    frame: Outline = canvas.turned(spine.astype(np.float32), turn)
    area = Canvas.around(frame, 7.0, mpp)
    sheet = np.zeros(area.shape, np.float32)
    for _ in range(int(rng.integers(4, 13))):
        drift = np.cumsum(np.cumsum(rng.normal(0, 0.05, (40, 2)), axis=0), axis=0)
        thread = frame + np.clip(drift - drift.mean(axis=0) + rng.normal(0, 1.8, 2), -6, 6)
        first, last = sorted(rng.choice(41, 2, replace=False).tolist())
        piece = thread[min(first, 30) : max(last, min(first, 30) + 10)].astype(np.float32)
        sheet += rng.uniform(0.08, 0.3) * area.stroke(piece, rng.uniform(0.4, 1.1), False)
    sheet = cv2.GaussianBlur(sheet, (0, 0), max(0.45 / mpp, 0.4)).astype(np.float32)
    eosin = np.float32(rng.beta(0.8, 1.5))
    return Dye(sheet, sheet * eosin, 0.0, 0.1 * sheet)


def _erythrocyte(mpp: float, rng: np.random.Generator) -> Dye:
    """A red cell of about 7 µm, or the ghost that SurePath's fluid leaves of it: a ring."""
    disc = canvas.rounded(rng, rng.uniform(32, 44), rng.uniform(1, 1.15), 0.02)
    area = Canvas.around(disc, 1.5, mpp)
    ghost = rng.random() < 0.5
    sheet = area.fill(disc) * (0.18 if ghost else 0.75)
    sheet -= area.fill(disc * np.float32(0.5)) * np.float32(0.1 if ghost else 0.3)
    sheet = np.maximum(sheet, 0) + 0.35 * area.stroke(disc, 0.6, True)
    return Dye(sheet, 0.9 * sheet, 0.4, np.zeros_like(sheet))
