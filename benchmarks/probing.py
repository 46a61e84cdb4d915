"""What the probes cost on features that are already there: seconds of CPU of each part, for each encoder.

    python benchmarks/probing.py

The features are drawn: classes that overlap, and pictures whose cells are alike, in the numbers of Herlev (917 cells,
7 classes) and SIPaKMeD (4,049 cells, 5 classes). The first encoder pays for the splits, which the next one shares. CPU
time is counted, so a busy machine changes little.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from papsmear.probes.classes import SETS
from papsmear.probes.datasets import CellSet
from papsmear.probes.fewshot import few_shot
from papsmear.probes.knn import Neighbourhoods
from papsmear.probes.probe import KS
from papsmear.probes.projection import class_map
from papsmear.probes.protocol import knn_probe
from papsmear.probes.results import measure
from papsmear.seeds import rng

CASES = (("herlev", 384), ("herlev", 2048), ("sipakmed", 384), ("sipakmed", 2048))
CELLS_A_PICTURE = 4
RUNS, SEED = 4, 0


def drawn_set(name: str) -> CellSet:
    """A set without images: as many cells of each class as the public one has, four of each picture."""
    public = SETS[name]
    labels = np.repeat(np.arange(len(public.cells)), public.cells)
    groups = tuple(f"{label}/{i // CELLS_A_PICTURE}" for i, label in enumerate(labels))
    return CellSet(name, public.classes, tuple(map(str, range(len(labels)))), (), labels, {}, groups=groups)


def drawn_features(cells: CellSet, width: int) -> NDArray[np.float32]:
    """Features (N, width) of falling variance, as those of networks are, with class and picture in them."""
    generator = rng(SEED, "features", cells.name, width)
    pictures = np.unique(cells.groups, return_inverse=True)[1]
    x = 0.6 * generator.normal(size=(len(cells.classes), width))[cells.labels]
    x += 1.0 * generator.normal(size=(pictures.max() + 1, width))[pictures]
    x += 2.0 * generator.normal(size=(len(cells.labels), width))
    mixed = (x / np.arange(1, width + 1) ** 0.7) @ np.linalg.qr(generator.normal(size=(width, width)))[0]
    return mixed.astype(np.float32)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name, width in CASES:
        cells = drawn_set(name)
        features = drawn_features(cells, width)
        near = Neighbourhoods.of(features, max(KS))
        parts: dict[str, Callable[[], Any]] = {
            "neighbours": lambda f=features: Neighbourhoods.of(f, max(KS)),
            "published k-NN": lambda f=features, c=cells, n=near: knn_probe(f, c, KS, RUNS, SEED, n),
            "every protocol": lambda f=features, c=cells, n=near: measure(f, c, KS, RUNS, SEED, n),
            "few-shot": lambda f=features, c=cells: few_shot(f, c, RUNS, SEED),
            "map": lambda f=features, c=cells: class_map({c.name: f}, {c.name: c}, "", SEED),
        }
        for encoder in ("first", "next"):
            spent = {}
            for part, run in parts.items():
                began = time.process_time()
                run()
                spent[part] = time.process_time() - began
            told = ", ".join(f"{part} {seconds:.1f}" for part, seconds in spent.items())
            total = sum(spent.values())
            print(
                f"{len(cells.labels):,} x {width:,}, {encoder} encoder: {total:.1f} s, "
                f"{total - spent['map']:.1f} without the map ({told})",
                flush=True,
            )


if __name__ == "__main__":
    main()
