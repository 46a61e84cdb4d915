"""Every head on a cohort of phantoms, with and without top-k selection and tile loss: what do the two changes bring?

    papsmear phantom COHORT --slides 120 --prevalence 0.2 --abnormal 0.005 --diameter_mm 2 --cells HERLEV --folds 4
    papsmear tile -c configs/tiling.yaml --slides COHORT/slides.csv --out SHARDS
    papsmear embed -c configs/embed.yaml --shards SHARDS --encoder ENCODER --out FEATURES
    python benchmarks/mil_cohort.py --slides COHORT/slides.csv --features FEATURES --out OUT [--heads mean max ...]

Labelled tiles are those that hold an annotated abnormal cell, in the training folds only. With `--cells HERLEV --shards
SHARDS`, in another OUT, they are the study's in their place: tiles with pasted cells, of the source pictures that only
the training folds' slides are made of. Bags of 16 a step, as in the study. What is finished is not run again. Prints
markdown: mean ± sd of the AUC of all folds, and the share of true positives among the ten tiles of highest score of the
positive test slides.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from papsmear.mil.crossval import crossval
from papsmear.mil.heads import HEADS
from papsmear.tiling.phantom.cutouts import deal, find_cutouts

ROOT = Path(__file__).resolve().parents[1]
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "top-k": {"top_k": 8},
    "tile loss": {"tile_loss": 0.5},
    "both": {"top_k": 8, "tile_loss": 0.5},
}


def main() -> int:
    """Cross-validates one head after the other, and prints a row of the table as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("slides", "features", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--heads", nargs="+", default=HEADS)
    parser.add_argument("--variants", nargs="+", default=CHANGES, choices=CHANGES)
    parser.add_argument("--epochs", type=int, default=50)
    for name in ("cells", "shards"):
        parser.add_argument(f"--{name}", type=Path, help="to paste cells on tiles in place of annotations")
    words = parser.parse_args()
    config = yaml.safe_load((ROOT / "configs" / "mil.yaml").read_text(encoding="utf-8"))
    data, trainer = config["data"], config["trainer"] | {"max_epochs": words.epochs, "logger": False}
    data["init_args"] |= {"features": str(words.features), "slides": str(words.slides), "batch_size": 16}
    parts = pasted(words.out, words.slides, words.cells, words.shards) if words.cells else [(None, {})]
    lines = [["head", *words.variants], ["---"] * (1 + len(words.variants))]
    for head in words.heads:
        variants = {f"{head}-{name.replace(' ', '-')}": {"head": head, **CHANGES[name]} for name in words.variants}
        for folds, own in parts:
            its = data | {"init_args": data["init_args"] | own}
            crossval(words.out / head, config["model"], its, trainer, heads=variants, folds=folds)
        lines.append([head, *(cell_of(words.out / head, variant) for variant in variants)])
        sys.stdout.write("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
        sys.stdout.flush()
    return 0


def pasted(out: Path, slides_csv: Path, cells: Path, shards: Path) -> list[tuple[list[int] | None, dict[str, Any]]]:
    """Each fold, and what its data has of its own: cells of the training folds, and annotations for the test alone."""
    with slides_csv.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    folds = sorted({int(row["fold"]) for row in rows})
    found: list[tuple[list[int] | None, dict[str, Any]]] = []
    for fold in folds:
        own = out / f"fold{fold}"
        link_training_cells(own / "cells", cells, fold, len(folds))
        with (own / "slides.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                where = str(slides_csv.parent.resolve() / row["annotations"]) if int(row["fold"]) == fold else ""
                writer.writerow(row | {"annotations": where})
        its = {"slides": f"{own}/slides.csv", "cells": {"herlev": f"{own}/cells"}, "shards": str(shards)}
        found.append(([fold], its))
    return found


def link_training_cells(folder: Path, cells: Path, fold: int, folds: int) -> None:
    """A set of those cells that, of the slides of `fold`, those are made of that are trained on."""
    dealt = deal(find_cutouts(cells), folds, seed=0)  # as papsmear phantom deals them
    for other in {*range(folds)} - {fold, (fold + 1) % folds}:
        for picture in (picture for cell in dealt[other] for picture in (cell.image, cell.mask)):
            link = folder / picture.relative_to(cells)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(picture.resolve())


def cell_of(out: Path, variant: str) -> str:
    """AUC, mean ± sd of the folds, and how many of the top ten tiles of positive slides hold an abnormal cell."""
    facts = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob(f"{variant}-fold*/test.json"))]
    aucs = [100 * found["auc"] for found in facts]
    tops = [top for found in facts for top in found["top_tiles"] if top["top"] == 10]
    hits, tiles = sum(top["hits"] for top in tops), sum(top["tiles"] for top in tops)
    return f"{mean(aucs):.1f} ± {stdev(aucs):.1f}, {100 * hits / tiles:.0f} %"


if __name__ == "__main__":
    sys.exit(main())
