"""Every head on a cohort of phantoms, with and without top-k selection and tile loss: what do the two changes bring?

    papsmear phantom COHORT --slides 120 --prevalence 0.2 --abnormal 0.005 --diameter_mm 2 --cells HERLEV --folds 4
    papsmear tile -c configs/tiling.yaml --slides COHORT/slides.csv --out SHARDS
    papsmear embed -c configs/embed.yaml --shards SHARDS --encoder ENCODER --out FEATURES
    python benchmarks/mil_cohort.py --slides COHORT/slides.csv --features FEATURES --out OUT [--heads mean max ...]

Labelled tiles are those that hold an annotated abnormal cell, in the training folds only. Bags of 16 a step, as in the
study. What is finished is not run again. Prints markdown: mean ± sd of the AUC of all folds, and the share of true
positives among the ten tiles of highest score of the positive test slides.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from papsmear.mil.crossval import crossval
from papsmear.mil.heads import HEADS

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
    parser.add_argument("--epochs", type=int, default=50)
    words = parser.parse_args()
    config = yaml.safe_load((ROOT / "configs" / "mil.yaml").read_text(encoding="utf-8"))
    data, trainer = config["data"], config["trainer"] | {"max_epochs": words.epochs, "logger": False}
    data["init_args"] |= {"features": str(words.features), "slides": str(words.slides), "batch_size": 16}
    lines = [["head", *CHANGES], ["---"] * (1 + len(CHANGES))]
    for head in words.heads:
        variants = {f"{head}-{name.replace(' ', '-')}": {"head": head, **change} for name, change in CHANGES.items()}
        crossval(words.out / head, config["model"], data, trainer, heads=variants)
        lines.append([head, *(cell_of(words.out / head, variant) for variant in variants)])
        sys.stdout.write("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
        sys.stdout.flush()
    return 0


def cell_of(out: Path, variant: str) -> str:
    """AUC, mean ± sd of the folds, and how many of the top ten tiles of positive slides hold an abnormal cell."""
    facts = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob(f"{variant}-fold*/test.json"))]
    aucs = [100 * found["auc"] for found in facts]
    tops = [top for found in facts for top in found["top_tiles"] if top["top"] == 10]
    hits, tiles = sum(top["hits"] for top in tops), sum(top["tiles"] for top in tops)
    return f"{mean(aucs):.1f} ± {stdev(aucs):.1f}, {100 * hits / tiles:.0f} %"


if __name__ == "__main__":
    sys.exit(main())
