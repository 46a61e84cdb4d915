"""How many slides in false colours are noticed by their light and stain, and how many good ones are refused?

    papsmear phantom COHORT --slides 80 --prevalence 0.2 --diameter_mm 1 --sites 4 --cell_sets 0 --seed 11
    papsmear tile -c configs/tiling.yaml --slides COHORT/slides.csv --out SHARDS
    python benchmarks/false_colours.py --slides COHORT/slides.csv --shards SHARDS [--unseen site_4]

Some slides are taken for the training, 40 times, and the others judged: as they are and with their tiles changed. Of
the site --unseen none is trained on; its slides are a row of their own.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from papsmear.cohort import read_slides
from papsmear.mil.colour import ColourCounts, Colours, Numbers
from papsmear.progress import track
from papsmear.seeds import rng
from papsmear.tiling.shards import read_tiles

Rgb = NDArray[np.uint8]
TRAININGS, SIZES = 40, (8, 12, 24, 40)


def _denser(by: tuple[float, float, float]) -> Callable[[Rgb], Rgb]:
    """Optical densities of red, green and blue, times these."""
    return lambda rgb: (240 * (rgb / 240) ** by).clip(0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[Rgb], Rgb]] = {
    "none": lambda rgb: rgb,
    "red and blue swapped": lambda rgb: rgb[..., ::-1],
    "half the light": lambda rgb: rgb // 2,
    "three quarters of the light": lambda rgb: (0.75 * rgb).astype(np.uint8),
    "nine tenths of the light": lambda rgb: (0.9 * rgb).astype(np.uint8),
    "grey": lambda rgb: np.repeat(rgb.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2),
    "densities x 1.5, 0.6, 1.2": _denser((1.5, 0.6, 1.2)),
    "densities x 2": _denser((2, 2, 2)),
}


def main() -> int:
    """Prints a row for each change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path, required=True)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--unseen", default="")
    words = parser.parse_args()
    slides = read_slides(words.slides, need_files=False)
    found = [numbers(words.shards / slide.slide_id) for slide in track(slides, "slides")]
    unseen = [told["none"] for slide, told in zip(slides, found, strict=True) if slide.site == words.unseen]
    known = [told for slide, told in zip(slides, found, strict=True) if slide.site != words.unseen]
    sizes = [size for size in SIZES if size < len(known)]
    sys.stdout.write(f"{'noticed, of training slides:':28}" + "".join(f"{size:>8}" for size in sizes) + "\n")
    shares = [noticed(known, unseen, size) for size in sizes]
    for name in shares[0]:
        sys.stdout.write(f"{name:28}" + "".join(f"{100 * share[name]:>6.1f} %" for share in shares) + "\n")
    return 0


def numbers(folder: Path) -> dict[str, tuple[Numbers, Numbers]]:
    """Light and stain of a slide after each change."""
    tiles = [simplejpeg.decode_jpeg(jpeg) for _, jpeg in read_tiles(folder)]
    found = {}
    for name, change in CHANGES.items():
        counts = ColourCounts()
        for _ in counts.counting(map(change, tiles)):
            pass
        found[name] = counts.light(), counts.stain()
    return found


def noticed(
    known: list[dict[str, tuple[Numbers, Numbers]]], unseen: list[tuple[Numbers, Numbers]], size: int
) -> dict[str, float]:
    """The share of slides beyond the limit of light or stain, for each change, over all trainings of `size` slides."""
    judged: dict[str, list[bool]] = {}
    for training in range(TRAININGS):
        order = rng(0, "false colours", training).permutation(len(known))
        scopes = [Colours.of([known[n]["none"][part] for n in order[:size]]) for part in (0, 1)]
        further = {name: [known[n][name] for n in order[size:]] for name in CHANGES}
        for name, of in {**further, "none, unseen site": unseen}.items():
            judged.setdefault(name, []).extend(beyond(scopes, slide) for slide in of)
    return {name: float(np.mean(of)) for name, of in judged.items() if of}


def beyond(scopes: list[Colours | None], slide: tuple[Numbers, Numbers]) -> bool:
    """Whether a slide's light or stain is beyond its limit."""
    pairs = zip(scopes, slide, strict=True)
    return any(colours is not None and colours.distance(part) > colours.limit for colours, part in pairs)


if __name__ == "__main__":
    sys.exit(main())
