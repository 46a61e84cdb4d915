"""Nuclei: where they lie in the cell, their outline, and their chromatin."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear.tiling.phantom import canvas
from papsmear.tiling.phantom.canvas import Canvas, Outline, Plane
from papsmear.tiling.phantom.morphology import Morphology


@dataclass(frozen=True)
class Nucleus:
    """One nucleus by its outline, in the frame of its cell."""

    outline: Outline

    def bulge(self) -> Outline:
        """The least that the cell's own outline has to hold: the nucleus and a film of cytoplasm."""
        centre = self.outline.mean(axis=0)
        radius = np.sqrt(((self.outline - centre) ** 2).sum(axis=1, keepdims=True))
        return np.asarray(self.outline + (self.outline - centre) / radius * 0.7, np.float32)

    def turned(self, angle: float) -> "Nucleus":
        return Nucleus(canvas.turned(self.outline, angle))


def outline_nuclei(
    form: Morphology, cell: Outline, nucleus_um2: float, rng: np.random.Generator
) -> tuple[Nucleus, ...]:
    """One or two nuclei in a cell whose long side lies along x; together they have `nucleus_um2`."""
    two = rng.random() < form.nuclei
    area_um2 = nucleus_um2 / (2 if two else 1)
    room = np.maximum(np.abs(cell).min(axis=0), np.quantile(np.abs(cell), 0.9, axis=0))
    slack = np.maximum(room - canvas.radius_um(nucleus_um2) * 1.1, 0)
    direction = rng.uniform(0, 2 * np.pi)
    lean = slack * form.eccentric * rng.uniform(0.3, 1.0) * np.array([np.cos(direction), np.sin(direction)])
    apart = canvas.radius_um(area_um2) * rng.uniform(0.9, 1.15)
    toward = rng.uniform(0, np.pi)
    sides = (-1, 1) if two else (0,)
    nuclei = []
    for side in sides:
        outline = canvas.rounded(rng, area_um2, float(rng.uniform(*form.nuclear_elongation)), form.irregular)
        x = float(lean[0] + side * apart * np.cos(toward))
        y = float(lean[1] + side * apart * np.sin(toward))
        tilt = rng.normal(0, 0.35) if form.elongation[1] > 1.45 else rng.uniform(0, np.pi)
        nuclei.append(Nucleus(canvas.turned(outline, float(tilt), (x, y))))
    return tuple(nuclei)


def draw_nucleus(
    form: Morphology, nucleus: Nucleus, area: Canvas, rng: np.random.Generator
) -> tuple[Plane, Plane, NDArray[np.bool_]]:
    """Its haematoxylin, the share of cytoplasm that it displaces, and its mask, each (H, W) on `area`."""
    body = area.fill(nucleus.outline)
    density = form.nuclear_density * float(np.exp(rng.normal(0, 0.1)))
    clumps = area.noise(rng, form.chromatin_um)
    clumps = np.clip(clumps, -0.9, 1.8) + 0.45 * area.noise(rng, 2.5 * form.chromatin_um)
    ink = body * density * np.clip(1 + form.chromatin * clumps, 0.3, 2.2)
    ink += form.membrane * area.stroke(nucleus.outline, 0.6, True) * np.clip(1 + 0.35 * area.noise(rng, 1.5), 0.2, 2)
    if rng.random() < form.nucleolus:
        spot = canvas.rounded(rng, rng.uniform(0.8, 2.6), 1.1, 0.05)
        centre = nucleus.outline.mean(axis=0) + rng.normal(0, 0.25, 2) * nucleus.outline.std(axis=0)
        drop = area.fill(canvas.turned(spot, 0.0, (float(centre[0]), float(centre[1]))))
        ink += 0.5 * cv2.GaussianBlur(drop, (0, 0), max(0.25 / area.mpp, 0.3))
    return ink.astype(np.float32), (0.55 * body).astype(np.float32), body > 0.5
