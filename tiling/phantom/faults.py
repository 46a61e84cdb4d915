"""What goes wrong with real slides, drawn on a phantom's overview: pen marks, air bubbles, dust, and so on.

They are drawn on the small picture that deposits are looked for on, not on the slide, so that hundreds of faulty
slides take seconds. Light passes through everything in its way: faults add optical densities, or change those of the
cells, and the truth, where the deposit lies, moves with the picture when it is cut or widened.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from papsmear import seeds
from papsmear.tiling.phantom.overview import UM_PER_PX, Overview, Plane

_INKS = {"blue": (1.6, 1.0, 0.25), "black": (1.9, 1.8, 1.7), "green": (1.5, 0.35, 0.9), "red": (0.15, 1.3, 1.1)}


def faint(it: Overview, rng: np.random.Generator) -> Overview:
    """Stained weakly."""
    return replace(it, cells=it.cells * np.float32(rng.uniform(0.25, 0.45)))


def sparse(it: Overview, rng: np.random.Generator) -> Overview:
    """Few cells: most groups of them did not stay."""
    kept = _noise(it.truth.shape, 130 / UM_PER_PX, rng) > rng.uniform(0.1, 0.6)
    return replace(it, cells=np.where((kept | ~it.truth)[..., None], it.cells, 0))


def crowded(it: Overview, rng: np.random.Generator) -> Overview:
    """Cells on top of cells, in a film of protein or blood, with dark clumps."""
    more = sum(np.rot90(it.cells, quarters) for quarters in range(1, 1 + rng.integers(1, 4)))
    film = rng.uniform(0, 0.12) + 0.05 * _noise(it.truth.shape, 60, rng)
    clumps = np.maximum(0, _noise(it.truth.shape, 25, rng) - 1.2) * rng.uniform(0.2, 0.8)
    colour = np.array([0.5, 1.0, 0.8], np.float32)
    soft = cv2.GaussianBlur(it.truth.astype(np.float32), (0, 0), 1.5)
    added = np.maximum(more, 0) + np.maximum(0, film + clumps)[..., None] * colour
    return replace(it, cells=it.cells + added * soft[..., None])


def pen(it: Overview, rng: np.random.Generator) -> Overview:
    """One to three strokes of a felt pen across or beside the deposit, or a ring around a part of it."""
    marks = np.zeros(it.truth.shape, np.float32)
    for _ in range(rng.integers(1, 4)):
        start, end = rng.uniform(-0.1, 1.1, (2, 2)) * it.truth.shape[::-1]
        along = np.linspace(0, 1, 40)[:, None]
        line = start + along * (end - start) + np.sin(along * rng.uniform(2, 9)) * rng.normal(0, 60, 2)
        if rng.random() < 0.3:
            turn = along * 2 * np.pi
            line = start + rng.uniform(60, 220) * np.hstack([np.cos(turn), np.sin(turn) * rng.uniform(0.6, 1)])
        stroke = _line(it.truth.shape, line, rng.uniform(500, 1800))
        marks = np.maximum(marks, stroke * np.float32(rng.uniform(0.5, 1.0)))
    streaks = 1 + 0.15 * _noise(it.truth.shape, 6, rng)
    ink = np.array(_INKS[str(rng.choice(list(_INKS)))], np.float32)
    return replace(it, glass=it.glass + np.multiply(cv2.GaussianBlur(marks, (0, 0), 1), streaks)[..., None] * ink)


def bubbles(it: Overview, rng: np.random.Generator) -> Overview:
    """Air under the cover slip: dark rims, and inside them cells that are hardly seen."""
    cells, glass = it.cells.copy(), it.glass.copy()
    for _ in range(rng.integers(1, 9)):
        x, y = rng.uniform(0.05, 0.95, 2) * it.truth.shape[::-1]
        radius, reach = np.exp(rng.uniform(np.log(150), np.log(2500))) / UM_PER_PX, rng.uniform(30, 110) / UM_PER_PX
        left, top, right, below = (
            max(0, int(v)) for v in (x - 1.3 * radius, y - 1.3 * radius, x + 1.3 * radius, y + 1.3 * radius)
        )
        here = (slice(top, below + 4), slice(left, right + 4))
        rows, columns = (v - at for v, at in zip(np.mgrid[here], (y, x), strict=True))
        rows, columns = (v[: it.truth.shape[0] - top, : it.truth.shape[1] - left] for v in (rows, columns))
        angle = np.arctan2(rows, columns)
        edge = radius * (1 + 0.08 * np.cos(2 * angle + rng.uniform(0, 6)) + 0.04 * np.cos(3 * angle))
        away = np.hypot(rows, columns) - edge
        cells[here][away < 0] *= np.float32(rng.uniform(0.1, 0.6))
        rim = np.exp(-((away / reach) ** 2)) * rng.uniform(0.5, 1.5)
        glass[here] += rim[..., None].astype(np.float32)
    return replace(it, cells=cells, glass=glass)


def dust(it: Overview, rng: np.random.Generator) -> Overview:
    """Specks and fibres all over the glass."""
    marks = np.zeros(it.truth.shape, np.float32)
    for _ in range(rng.integers(30, 250)):
        at = (rng.random(2) * it.truth.shape[::-1]).astype(int).tolist()
        axes = np.maximum(1, np.exp(rng.uniform(np.log(10), np.log(150), 2)) / UM_PER_PX).astype(int).tolist()
        cv2.ellipse(marks, at, axes, float(rng.uniform(0, 180)), 0, 360, float(rng.uniform(0.2, 1.5)), -1)
    for _ in range(rng.integers(2, 15)):
        steps = np.cumsum(np.full(30, rng.uniform(0, 6)) + rng.normal(0, 0.25, 30))
        path = np.cumsum(np.stack([np.cos(steps), np.sin(steps)], 1), axis=0)
        path = rng.random(2) * it.truth.shape[::-1] + path * rng.uniform(1.5, 10)
        fibre = _line(it.truth.shape, path, rng.uniform(16, 50))
        marks = np.maximum(marks, fibre * np.float32(rng.uniform(0.2, 1.0)))
    colour = np.array([0.8, 0.9, 1.0], np.float32)
    return replace(it, glass=it.glass + marks[..., None] * colour)


def cover_slip(it: Overview, rng: np.random.Generator) -> Overview:
    """The edge of the cover slip: a dark line with a bright one beside it, and glass of another tint behind it."""
    turn, middle = rng.uniform(0, 2 * np.pi), np.array(it.truth.shape[::-1]) / 2
    away = rng.uniform(0.15, 0.5) * it.diameter_px
    rows, columns = np.ogrid[: it.truth.shape[0], : it.truth.shape[1]]
    off = ((columns - middle[0]) * np.cos(turn) + (rows - middle[1]) * np.sin(turn) - away).astype(np.float32)
    width = rng.uniform(30, 110) / UM_PER_PX
    edge = rng.uniform(0.2, 0.9) * np.exp(-((off / width) ** 2)) - 0.04 * np.exp(-((off / width - 3) ** 2))
    tint = rng.uniform(0.01, 0.06) * np.array([1, rng.uniform(0.6, 1), rng.uniform(0.6, 1)])
    return replace(it, glass=it.glass + (edge[..., None] + (off > 0)[..., None] * tint).astype(np.float32))


def lamp(it: Overview, rng: np.random.Generator) -> Overview:
    """Light that falls off to the sides, and lanes of the scanner that differ a little."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, side) for side in it.truth.shape), indexing="ij")
    fall = rng.uniform(0, 0.06) * (rows**2 + columns**2) + rng.uniform(-0.05, 0.05) * rows
    lanes = rng.normal(0, 0.006, 200)[np.arange(it.truth.shape[1]) // 40]
    return replace(it, glass=it.glass + (fall + lanes + 0.05).astype(np.float32)[..., None])


def cut_off(it: Overview, rng: np.random.Generator) -> Overview:
    """A scan that ends within the deposit: up to 35 % of its diameter is missing on one side, or less on two."""
    rows, columns = (np.flatnonzero(it.truth.any(axis)) for axis in (1, 0))
    part = rng.uniform(0.05, 0.35)
    sides = np.array([part, 0.0] if rng.random() < 0.7 else [part / 2, rng.uniform(0, part / 2)])
    below, right = (round(v) for v in rng.permutation(sides) * it.diameter_px)
    window = (slice(0, rows[-1] + 1 - below if below else None), slice(0, columns[-1] + 1 - right if right else None))
    return _turned(_cut(it, window), int(rng.integers(4)))


def wide(it: Overview, rng: np.random.Generator) -> Overview:
    """Much clean glass around the deposit, which lies anywhere on it."""
    top, below, left, right = (int(v) for v in rng.integers(0, 350, 4))

    def padded(plane: NDArray[Any], border: int) -> NDArray[Any]:
        return np.asarray(cv2.copyMakeBorder(plane, top, below, left, right, border))

    return replace(
        it,
        cells=padded(it.cells, cv2.BORDER_CONSTANT),
        glass=padded(it.glass, cv2.BORDER_REPLICATE),
        truth=padded(it.truth.astype(np.uint8), cv2.BORDER_CONSTANT) > 0,
        scanned=padded(it.scanned.astype(np.uint8), cv2.BORDER_REPLICATE) > 0,
    )


def unscanned(it: Overview, rng: np.random.Generator) -> Overview:
    """The scanner looked only at squares near what it took for cells; the rest is white."""
    side = int(rng.integers(40, 110))
    reach = int(rng.integers(3, 60))
    near = cv2.dilate(it.truth.astype(np.uint8), np.ones((reach, reach), np.uint8))
    small = cv2.resize(near, (-(-near.shape[1] // side), -(-near.shape[0] // side)), interpolation=cv2.INTER_AREA)
    squares = np.kron(small, np.ones((side, side), np.uint8))[: near.shape[0], : near.shape[1]]
    return replace(it, scanned=it.scanned & (squares > 0))


FAULTS: dict[str, Callable[[Overview, np.random.Generator], Overview]] = {
    fault.__name__: fault
    for fault in (faint, sparse, crowded, wide, cut_off, lamp, cover_slip, bubbles, dust, pen, unscanned)
}


def variant(base: Overview, number: int, seed: int = 0) -> tuple[Overview, tuple[str, ...]]:
    """One of any number of faulty slides made of `base`, and its faults: one for every third, else two to four."""
    rng = seeds.rng(seed, "faults", number)
    names = list(FAULTS)
    count = 1 if number % 3 == 0 else int(rng.integers(2, 5))
    chosen = {names[number // 3 % len(names)]} if count == 1 else set(rng.choice(names, count, replace=False).tolist())
    ordered = tuple(name for name in names if name in chosen)
    for name in ordered:
        base = FAULTS[name](base, seeds.rng(seed, "faults", number, name))
    return base, ordered


def _cut(it: Overview, window: tuple[slice, slice]) -> Overview:
    return Overview(it.cells[window], it.glass[window], it.truth[window], it.scanned[window], it.diameter_px)


def _turned(it: Overview, quarters: int) -> Overview:
    def turned(plane: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(np.rot90(plane, quarters))

    return Overview(turned(it.cells), turned(it.glass), turned(it.truth), turned(it.scanned), it.diameter_px)


def _line(shape: tuple[int, ...], xy: NDArray[np.float64], width_um: float) -> Plane:
    ink = np.zeros(shape, np.uint8)
    points = [np.rint(xy * 16).astype(np.int32)]
    cv2.polylines(ink, points, False, 255, max(1, round(width_um / UM_PER_PX)), cv2.LINE_AA, 4)
    return np.multiply(ink, min(1.0, width_um / UM_PER_PX) / 255, dtype=np.float32)


def _noise(shape: tuple[int, ...], grain_px: float, rng: np.random.Generator) -> Plane:
    """Smooth noise (H, W), deviation about 1."""
    grid = rng.standard_normal([max(2, round(side / grain_px)) for side in shape], np.float32)
    return np.asarray(cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32)
