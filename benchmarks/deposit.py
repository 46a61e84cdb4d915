"""How well deposits are found on faulty phantom slides: IoU by fault, seconds, and a sheet of pictures.

    python benchmarks/deposit.py --variants 300 --sheet deposits.png

The truth is where the phantom's density of cells is above zero, ragged rim and all, cut to the slide; the outline is
what `find_deposit` gives. Variants are numbered, so a bad one can be drawn again.
"""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from papsmear.tiling.deposit import DepositError, find_deposit
from papsmear.tiling.phantom.faults import FAULTS, variant
from papsmear.tiling.phantom.overview import UM_PER_PX, Overview, overview_of_scene
from papsmear.tiling.reader import open_slide

MPP = 0.5
LEVEL0_PX_PER_PX = UM_PER_PX / MPP
SCENES, CELL_PX, COLUMNS = 8, 420, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="a PNG of the first 24 and of the 12 worst variants")
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    scenes = [overview_of_scene(asked.seed * SCENES + number, f"site {number}") for number in range(SCENES)]
    rows = [measure(*variant(scenes[n % SCENES], n, asked.seed)) for n in range(asked.variants)]
    table(rows)
    if asked.sheet:
        worst = sorted(range(len(rows)), key=lambda n: rows[n][1])[:12]
        shown = [*range(min(24, len(rows))), *worst]
        cells = [picture(variant(scenes[n % SCENES], n, asked.seed)[0], n, *rows[n][:3]) for n in shown]
        cells += [np.zeros_like(cells[0])] * (-len(cells) % COLUMNS)
        lines = [np.hstack(cells[at : at + COLUMNS]) for at in range(0, len(cells), COLUMNS)]
        cv2.imwrite(str(asked.sheet), cv2.cvtColor(np.vstack(lines), cv2.COLOR_RGB2BGR))


Row = tuple[tuple[str, ...], float, float, float]


def measure(slide: Overview, faults: tuple[str, ...]) -> Row:
    """(faults, IoU, confidence, seconds of CPU)."""
    rgb = slide.rgb()
    start = time.process_time()
    outline, confidence = found(rgb)
    seconds = time.process_time() - start
    mask = np.zeros(slide.truth.shape, np.uint8)
    if outline is not None:
        cv2.fillPoly(mask, [np.rint((outline - 0.5) * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
    both, either = (mask > 0) & slide.truth, (mask > 0) | slide.truth
    return faults, float(both.sum() / either.sum()), confidence, seconds


def found(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float64] | None, float]:
    """The outline in overview pixels and its confidence; no outline where none is found."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tiff"  # tells its µm/px; the overview is given
        blank = np.full((256, 256, 3), 255, np.uint8)
        scale = (1e4 / MPP, 1e4 / MPP)
        tifffile.imwrite(path, blank, tile=(256, 256), photometric="rgb", resolution=scale, resolutionunit="CENTIMETER")
        with open_slide(path) as reader:
            try:
                deposit = find_deposit(reader, "disc", rgb, LEVEL0_PX_PER_PX)
            except DepositError as error:
                sys.stdout.write(f"{error}\n")
                return None, 0.0
    return deposit.outlines_xy_level0[0] / LEVEL0_PX_PER_PX, deposit.confidence


def table(rows: list[Row]) -> None:
    sys.stdout.write(
        "| faults | slides | median IoU | worst IoU | median confidence | ms |\n|---|---|---|---|---|---|\n"
    )
    alone = [(f"{name}, alone", [row for row in rows if row[0] == (name,)]) for name in FAULTS]
    among = [(f"{name}, among others", [r for r in rows if name in r[0] and len(r[0]) > 1]) for name in FAULTS]
    for name, some in (*alone, *among, ("all", rows)):
        if some:
            iou, confidence, seconds = (np.array([row[column] for row in some]) for column in (1, 2, 3))
            sys.stdout.write(
                f"| {name} | {len(some)} | {np.median(iou):.3f} | {iou.min():.3f} | {np.median(confidence):.2f}"
                f" | {1000 * np.mean(seconds):.0f} |\n"
            )


def picture(slide: Overview, number: int, faults: tuple[str, ...], iou: float, confidence: float) -> NDArray[np.uint8]:
    """A cell of the sheet: the truth in green, the outline in red."""
    rgb = slide.rgb()
    outline, _ = found(rgb)
    contours, _ = cv2.findContours(slide.truth.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(rgb, contours, -1, (0, 170, 0), 4)
    if outline is not None:
        cv2.polylines(rgb, [np.rint(outline).astype(np.int32)], True, (230, 0, 0), 3, cv2.LINE_AA)
    scale = CELL_PX / max(rgb.shape)
    small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    cell = np.full((CELL_PX + 40, CELL_PX + 4, 3), 70, np.uint8)
    cell[: small.shape[0], : small.shape[1]] = small
    for line, text in enumerate((f"{number}: IoU {iou:.3f}, confidence {confidence:.2f}", " + ".join(faults))):
        at = (4, CELL_PX + 14 + 18 * line)
        cv2.putText(cell, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return cell


if __name__ == "__main__":
    main()
